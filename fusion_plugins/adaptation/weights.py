"""Merged weights without a graph: base + coefficients x task vectors, and its gradient.

The merge is linear, so a step needs no backward pass through it: write the merged values
into plain parameters, run forward and backward there, then read the coefficients'
gradient off as inner products <task vector, parameter gradient>.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..common.identity import fingerprint
from ..common.workers import Workers
from ..task_vectors import TaskVectors
from .layers import Layer, read_stacks

STORAGE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


class MergedWeights:
    """A module of weights ``base + sum_t coefficients[t, l] * task_vectors[t][l]``.

    Args:
        module: Has the merged tensors under the task vectors' names. Its parameters are
            overwritten; the merged ones get requires_grad, all others lose it. It is put
            into evaluation mode.
        task_vectors: Base and experts; read once, here.
        device: Where the module runs.
        storage_dtype: How task vectors are kept, a key of STORAGE_DTYPES.
        offload: Keep task vectors in pinned CPU memory and stream them in each step.
    """

    def __init__(
        self,
        module: nn.Module,
        task_vectors: TaskVectors,
        device: torch.device | str = "cpu",
        storage_dtype: str = "float32",
        offload: bool = False,
    ):
        self.tasks, self.keys = task_vectors.tasks, task_vectors.keys
        self.device = torch.device(device)
        self._offload = offload and self.device.type != "cpu"
        stacks, bases = read_stacks(task_vectors, STORAGE_DTYPES[storage_dtype])
        module.requires_grad_(False)
        # Already for the experts' own predictions: no dropout, stored batch statistics.
        self.module = module.to(self.device).eval()
        targets = self.module.state_dict(keep_vars=True)
        self._layers = []
        for key in self.keys:
            stack = stacks.pop(key)
            stack = stack.pin_memory() if self._offload else stack.to(self.device)
            base = bases.pop(key).to(self.device)
            self._layers.append(Layer(key, targets[key], base, stack))
        self._workers = Workers()

    def norms(self) -> list[float]:
        """Norm of each task vector as stored."""
        squares = [layer.stack.float().square().sum(1) for layer in self._layers]
        return torch.stack(squares).double().sum(0).sqrt().tolist()

    def fingerprint(self) -> str:
        """A short name for base and task vectors, and for what is not merged."""
        merged = {layer.target.data_ptr() for layer in self._layers}
        state = self.module.state_dict()
        rest = {n: v for n, v in state.items() if v.data_ptr() not in merged}
        return fingerprint([[layer.base, layer.stack] for layer in self._layers], rest)

    @property
    def stacks(self) -> list[Tensor]:
        """Task vectors per layer, shape (tasks, entries); may be changed in place."""
        return [layer.stack for layer in self._layers]

    def leave_out(self, keys: Sequence[str]) -> None:
        """Merge these tensors no more: something else has taken their place."""
        for layer in self._layers:
            if layer.key in keys:
                layer.merged = False
                layer.target.requires_grad_(False)

    def train_moved_layers(self) -> None:
        """Ask for gradients exactly where some task vector is not zero."""
        for layer in self._layers:
            trainable = layer.merged and isinstance(layer.target, nn.Parameter)
            layer.target.requires_grad_(trainable and bool((layer.stack != 0).any()))

    @torch.no_grad()
    def materialise(self, coefficients: Tensor) -> nn.Module:
        """Write the merged weights into the module.

        Args:
            coefficients: Shape (tasks, layers), layers in the order of `keys`.
        """

        def merge(column: int) -> None:
            self._layers[column].merge(coefficients[:, column], self._offload)

        self._each(merge, self._columns(lambda layer: layer.merged))
        return self.module

    @torch.no_grad()
    def materialise_expert(self, task: int) -> nn.Module:
        """Write one task's expert into the module: the merge with a single 1."""

        def write(column: int) -> None:
            self._layers[column].write_expert(task)

        self._each(write, self._columns(lambda layer: layer.merged))
        return self.module

    @torch.no_grad()
    def coefficient_gradient(self) -> Tensor:
        """dL/d coefficients from the parameters' gradients, which are then dropped.

        Returns:
            Shape (tasks, layers); columns of tensors without a gradient are zero.
        """
        dtype = torch.promote_types(self._layers[0].base.dtype, torch.float32)
        shape = len(self.tasks), len(self.keys)
        gradient = torch.zeros(shape, dtype=dtype, device=self.device)

        def take(column: int) -> None:
            gradient[:, column] = self._layers[column].take_gradient()

        self._each(take, self._columns(lambda layer: layer.target.grad is not None))
        return gradient

    def _columns(self, wanted: Callable[[Layer], bool]) -> list[int]:
        """Columns of the layers that are wanted, the largest first."""
        found = [c for c, layer in enumerate(self._layers) if wanted(layer)]
        return sorted(found, key=lambda column: -self._layers[column].stack.nbytes)

    def _each(self, work: Callable, items: Sequence) -> None:
        """Call `work` with every item, on the CPU several at once."""
        if self.device.type == "cpu":
            self._workers.each(work, items, both_ends=True)
        else:
            for item in items:
                work(item)
