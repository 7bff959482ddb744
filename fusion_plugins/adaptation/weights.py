"""Merged weights without a graph: base + coefficients x task vectors, and its gradient.

The merge is linear, so a step needs no backward pass through it: write the merged values
into plain parameters, run forward and backward there, then read the coefficients'
gradient off as inner products <task vector, parameter gradient>.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusion_plugins.task_vectors import TaskVectors

# Entries per task converted at once where the stored dtype is not the computing one.
_CHUNK = 2**20

STORAGE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclass
class _Layer:
    """One merged tensor: where it lives in the module, and what it is merged from."""

    key: str
    target: Tensor  # the module's parameter or buffer
    base: Tensor  # (entries,)
    stack: Tensor  # (tasks, entries), zero rows included
    merged: bool = True


class MergedWeights:
    """A module whose weights are base + sum_t coefficients[t, l] * task_vectors[t][l].

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
        stacks, bases = _read(task_vectors, STORAGE_DTYPES[storage_dtype])
        module.requires_grad_(False)
        # Already for the experts' own predictions: no dropout, stored batch statistics.
        self.module = module.to(self.device).eval()
        targets = self.module.state_dict(keep_vars=True)
        self._layers = []
        for key in self.keys:
            stack = stacks.pop(key)
            stack = stack.pin_memory() if self._offload else stack.to(self.device)
            base = bases.pop(key).to(self.device)
            self._layers.append(_Layer(key, targets[key], base, stack))

    def norms(self) -> list[float]:
        """Norm of each task vector as stored."""
        squares = [layer.stack.float().square().sum(1) for layer in self._layers]
        return torch.stack(squares).double().sum(0).sqrt().tolist()

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
        for column, layer in enumerate(self._layers):
            if not layer.merged:
                continue
            weights = coefficients[:, column].to(layer.base)
            target = layer.target.data.view(-1)
            stack = layer.stack
            if stack.dtype == weights.dtype == target.dtype and not self._offload:
                torch.addmv(layer.base, stack.t(), weights, out=target)
                continue
            for part in _chunks(stack.shape[1]):
                values = stack[:, part].to(layer.base, non_blocking=True)
                target[part] = torch.addmv(layer.base[part], values.t(), weights)
        return self.module

    def materialise_expert(self, task: int) -> nn.Module:
        """Write one task's expert into the module: the merge with a single 1."""
        one = torch.zeros(len(self.tasks), len(self.keys), device=self.device)
        one[task] = 1
        return self.materialise(one)

    @torch.no_grad()
    def coefficient_gradient(self) -> Tensor:
        """dL/d coefficients from the parameters' gradients, which are then dropped.

        Returns:
            Shape (tasks, layers); columns of tensors without a gradient are zero.
        """
        dtype = torch.promote_types(self._layers[0].base.dtype, torch.float32)
        gradient = torch.zeros(
            len(self.tasks), len(self.keys), dtype=dtype, device=self.device
        )
        for column, layer in enumerate(self._layers):
            if layer.target.grad is None:
                continue
            grad = layer.target.grad.reshape(-1).to(layer.base)
            for part in _chunks(grad.numel(), whole=layer.stack.dtype == grad.dtype):
                values = layer.stack[:, part].to(grad, non_blocking=True)
                gradient[:, column] += torch.mv(values, grad[part])
            layer.target.grad = None
        return gradient


def _chunks(entries: int, whole: bool = False) -> Sequence[slice]:
    if whole:
        return [slice(0, entries)]
    return [slice(at, min(at + _CHUNK, entries)) for at in range(0, entries, _CHUNK)]


def _read(
    task_vectors: TaskVectors, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Stacks (tasks, entries) in `dtype` and bases (entries,) in the computing dtype."""
    stacks, bases = {}, {}
    for block in task_vectors.blocks():
        key, shape = block.key, task_vectors.shape(block.key)
        if key not in stacks:
            entries = torch.Size(shape).numel()
            stacks[key] = torch.empty(len(task_vectors.tasks), entries, dtype=dtype)
            bases[key] = torch.empty(entries, dtype=block.base.dtype)
        row_size = block.base.shape[1]
        place = slice(block.rows.start * row_size, block.rows.stop * row_size)
        values = block.task_vectors
        if not torch.isfinite(values.sum()):
            task_vectors.raise_not_finite(block)
        stacks[key][:, place] = values.flatten(1)
        bases[key][place] = block.base.flatten()
    return stacks, bases
