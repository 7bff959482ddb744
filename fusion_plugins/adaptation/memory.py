"""How much memory a learned run takes, from the shapes of what it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layers import Layer


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a learned run holds at its peak, on the device that it runs on.

    Samples that are kept, libraries, and what an allocator does not give back come on
    top.

    Attributes:
        base: Pretrained values of what is merged.
        module: The module's own tensors.
        gradients: Of the merged parameters.
        task_vectors: As they are kept.
        activations: What autograd keeps of one forward.
        batch_tasks: Tasks in one forward.
        forwards: In a step.
        offload: The task vectors are in CPU memory.
    """

    base: int
    module: int
    gradients: int
    task_vectors: int
    activations: int
    batch_tasks: int
    forwards: int
    offload: bool = False

    @classmethod
    def of(
        cls,
        module: nn.Module,
        layers: Sequence[Layer],
        activations: int,
        batch_tasks: int,
        forwards: int,
        offload: bool = False,
    ) -> MemoryPlan:
        """From shapes alone; nothing is read from the tensors."""
        trained = [x.target for x in layers if x.target.requires_grad]
        return cls(
            sum(layer.base.nbytes for layer in layers),
            sum(t.nbytes for t in (*module.parameters(), *module.buffers())),
            sum(target.nbytes for target in trained),
            sum(layer.stack.nbytes for layer in layers),
            activations,
            batch_tasks,
            forwards,
            offload,
        )

    @property
    def peak(self) -> int:
        """All together; in the last forward's place if there is but one, gradients."""
        step = max(self.gradients, self.activations)
        if self.forwards > 1:  # the gradients of the first meet the second
            step = self.gradients + self.activations
        kept = 0 if self.offload else self.task_vectors
        return self.base + self.module + kept + step

    def __str__(self) -> str:
        place = " in CPU memory" if self.offload else ""
        return (
            f"base {_size(self.base)}, merged weights"
            f" {_size(self.module)}, gradients {_size(self.gradients)}, task vectors"
            f" {_size(self.task_vectors)}{place}, activations {_size(self.activations)}"
            f" at batch_tasks={self.batch_tasks}: {_size(self.peak)} at most"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def activation_bytes(module: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes that autograd keeps for one forward; the module's buffers stay as they are."""
    held: dict[int, int] = {}
    parameters = {p.untyped_storage()._cdata for p in module.parameters()}
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            held[storage._cdata] = storage.nbytes()
        # Without its graph, which would hold this very tensor in a circle for ever.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        forward()
    for buffer, before in buffers:
        buffer.data.copy_(before)
    return sum(held.values())
