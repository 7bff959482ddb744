"""Merged weights without a graph: base + coefficients x task vectors, and its gradient.

The merge is linear, so a step needs no backward pass through it: write the merged values
into plain parameters, run forward and backward there, then read the coefficients'
gradient off as inner products <task vector, parameter gradient>.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..common import get_logger
from ..common.identity import fingerprint
from ..task_vectors import TaskVectors
from ..task_vectors.blocks import Workers
from .layers import Layer, read_layers, storage_error
from .memory import MemoryPlan
from .quantised import Kernels, QuantisedStack

log = get_logger(__name__)

STORAGE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
    "int8": torch.int8,
    "int4": torch.uint8,  # two codes in a byte
}
QUANTISED = ("int8", "int4")

# Entries of all task vectors from which on compiling the kernels (10 to 20 s) is worth it.
_COMPILED_FROM = 2**26


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
        self._storage_dtype = storage_dtype
        self._offload = offload and self.device.type != "cpu"
        module.requires_grad_(False)
        # Already for the experts' own predictions: no dropout, stored batch statistics.
        self.module = module.to(self.device).eval()
        targets = self.module.state_dict(keep_vars=True)
        self._layers = read_layers(task_vectors, STORAGE_DTYPES[storage_dtype], targets)
        for layer in self._layers:
            layer.base = layer.base.to(self.device)
            layer.stack = self._placed(layer.stack)
        self._workers = Workers()
        if self.device.type == "cpu":
            self._compile_kernels()

    def _placed(self, stack: Tensor | QuantisedStack) -> Tensor | QuantisedStack:
        def place(values: Tensor) -> Tensor:
            return values.pin_memory() if self._offload else values.to(self.device)

        return place(stack) if isinstance(stack, Tensor) else stack.map(place)

    def _compile_kernels(self) -> None:
        """Give the layers compiled kernels where their task vectors are quantised.

        Every variant is compiled here, by one thread: later calls come from several.
        """
        wide = [
            (layer, layer.stack)
            for layer in self._layers
            if isinstance(layer.stack, QuantisedStack) and layer.stack.wide
        ]
        entries = sum(stack.shape[1] for _, stack in wide)
        if not wide or entries * len(self.tasks) < _COMPILED_FROM:
            return
        kernels = Kernels.compiled()
        kinds = {(layer.target.dtype, stack.dtype): stack for layer, stack in wide}
        try:
            for (target, _), stack in kinds.items():
                self._workers.each(partial(kernels.prepare, target), [stack])
        except Exception as error:  # noqa: BLE001 no compiler, or one that fails
            reason = str(error).strip().partition("\n")[0][:200]
            log.warning("Task vectors are read without compiled kernels: %s", reason)
            return
        for layer, _ in wide:
            layer.kernels = kernels

    def norms(self) -> list[float]:
        """Norm of each task vector as stored."""
        squares = [layer.squares() for layer in self._layers]
        return torch.stack(squares).double().sum(0).sqrt().tolist()

    def fingerprint(self) -> str:
        """A short name for base and task vectors, and for what is not merged."""
        merged = {layer.target.data_ptr() for layer in self._layers}
        state = self.module.state_dict()
        rest = {n: v for n, v in state.items() if v.data_ptr() not in merged}
        return fingerprint([[layer.base, layer.stack] for layer in self._layers], rest)

    @property
    def stored_bytes(self) -> int:
        """Of all task vectors."""
        return sum(layer.stack.nbytes for layer in self._layers)

    @property
    def stacks(self) -> list[Tensor]:
        """Task vectors per layer, shape (tasks, entries); may be changed in place.

        Raises:
            TypeError: They are quantised.
        """
        stacks = [x.stack for x in self._layers if isinstance(x.stack, Tensor)]
        if len(stacks) < len(self._layers):
            raise TypeError("Quantised task vectors cannot be changed in place.")
        return stacks

    def memory_plan(
        self, activations: int, batch_tasks: int, forwards: int
    ) -> MemoryPlan:
        """What a step of so many forwards, with these activations each, holds."""
        given = activations, batch_tasks, forwards, self._offload
        return MemoryPlan.of(self.module, self._layers, *given)

    def storage_notes(self, coefficients: Tensor) -> list[str]:
        """A sentence on how far quantised task vectors put the merge off, also logged.

        Args:
            coefficients: Those of the merge in the module, shape (tasks, layers).
        """
        error = storage_error(self._layers, coefficients)
        if error is None:
            return []
        note = (
            f"Task vectors in {self._storage_dtype} put the merged weights off by"
            f" {error[0]:.1e} of their norm, {error[1]:.1e} of their change."
        )
        log.info(note)
        return [note]

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
            layer.target.requires_grad_(trainable and layer.moved())

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
