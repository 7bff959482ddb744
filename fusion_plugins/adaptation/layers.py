"""One merged tensor: reading what it is merged from, merging, and its gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..task_vectors import TaskVectors
from .quantised import Kernels, QuantisedStack

# Entries per task worked on at once: what is written stays in the cache between copying
# the base and adding the task vectors, and conversions need little memory.
_CHUNK = 2**18


@dataclass
class Layer:
    """One merged tensor: where it lives in the module, and what it is merged from."""

    key: str
    target: Tensor  # the module's parameter or buffer
    base: Tensor  # (entries,)
    stack: Tensor | QuantisedStack  # (tasks, entries), zero rows included
    error: Tensor | None = None  # inner products of rounding errors, (tasks, tasks)
    merged: bool = True
    kernels: Kernels | None = None  # for quantised task vectors, once compiled

    def fill(self, part: slice, base: Tensor, values: Tensor) -> None:
        """Take over entries of the base, and of the task vectors (tasks, entries)."""
        self.base[part] = base
        if isinstance(self.stack, QuantisedStack):
            error = self.stack.write(part, values)
            self.error = error if self.error is None else self.error + error
        else:
            self.stack[:, part] = values

    def merge(self, weights: Tensor, streamed: bool = False) -> None:
        """Write base + weights (tasks,) x task vectors into the module."""
        weights = weights.to(self.base)
        target, stack = self.target.data.view(-1), self.stack
        if self.kernels is not None and isinstance(stack, QuantisedStack):
            return self.kernels.merge(stack, target, self.base, weights)
        direct = stack.dtype == weights.dtype == target.dtype and not streamed
        for part in self._parts():
            base, values = self.base[part], self._values(part)
            if direct:
                torch.addmv(base, values.t(), weights, out=target[part])
            else:
                target[part] = torch.addmv(base, values.t(), weights)

    def write_expert(self, task: int) -> None:
        """Write base + one task vector into the module, reading no other."""
        target = self.target.data.view(-1)
        for part in self._parts():
            row = self._values(part, slice(task, task + 1))[0]
            target[part] = torch.add(self.base[part], row)

    def take_gradient(self) -> Tensor:
        """<task vector, gradient> of each task, shape (tasks,); drops the gradient."""
        assert self.target.grad is not None
        gradient = self.target.grad.reshape(-1).to(self.base)
        self.target.grad = None
        if self.kernels is not None and isinstance(self.stack, QuantisedStack):
            return self.kernels.inner(self.stack, gradient)
        same = self.stack.dtype == gradient.dtype
        total = gradient.new_zeros(self.stack.shape[0])
        for part in self._parts(whole=same):
            total = total + torch.mv(self._values(part), gradient[part])
        return total

    def squares(self) -> Tensor:
        """Squared norm of each task vector as stored, shape (tasks,)."""
        if isinstance(self.stack, Tensor):
            return self.stack.float().square().sum(1)
        squares = self.base.new_zeros(self.stack.shape[0])
        for part in self._parts():
            squares += self._values(part).square().sum(1)
        return squares

    def moved(self) -> bool:
        """Whether some task vector is not zero."""
        values = self.stack if isinstance(self.stack, Tensor) else self.stack.scales
        return bool((values != 0).any())

    def _values(self, part: slice, tasks: slice = slice(None)) -> Tensor:
        """Task vectors in the computing dtype, where they are computed with."""
        if isinstance(self.stack, QuantisedStack):
            return self.stack.read(part, self.base.device, tasks)
        return self.stack[tasks, part].to(self.base, non_blocking=True)

    def _parts(self, whole: bool = False) -> Iterable[slice]:
        if isinstance(self.stack, QuantisedStack):
            return self.stack.parts()
        step = max(self.base.numel(), 1) if whole else _CHUNK
        starts = range(0, self.base.numel(), step)
        return [slice(at, min(at + step, self.base.numel())) for at in starts]


def empty_stack(
    tasks: int, shape: tuple[int, ...], stored: torch.dtype, values: torch.dtype
) -> Tensor | QuantisedStack:
    """Room for a tensor's task vectors, kept in `stored` and computed with in `values`."""
    if stored.is_floating_point:
        return torch.empty(tasks, torch.Size(shape).numel(), dtype=stored)
    return QuantisedStack.empty(tasks, shape, stored, values)


def read_layers(
    task_vectors: TaskVectors, stored: torch.dtype, targets: Mapping[str, Tensor]
) -> list[Layer]:
    """Layers of all tensors, with their task vectors kept in `stored`.

    Args:
        task_vectors: Base and experts, read once.
        stored: A floating dtype, or that of a quantised stack's codes.
        targets: The module's tensors.
    """
    layers: dict[str, Layer] = {}
    tasks = len(task_vectors.tasks)
    for block in task_vectors.blocks():
        key, dtype = block.key, block.base.dtype
        if key not in layers:
            shape = task_vectors.shape(key)
            base = torch.empty(torch.Size(shape).numel(), dtype=dtype)
            stack = empty_stack(tasks, shape, stored, dtype)
            layers[key] = Layer(key, targets[key], base, stack)
        if not torch.isfinite(block.task_vectors.sum()):
            task_vectors.raise_not_finite(block)
        row_size = block.base.shape[1]
        place = slice(block.rows.start * row_size, block.rows.stop * row_size)
        layers[key].fill(place, block.base.flatten(), block.task_vectors.flatten(1))
    return list(layers.values())


def storage_error(
    layers: Iterable[Layer], coefficients: Tensor
) -> tuple[float, float] | None:
    """How far quantised task vectors put the merged weights off; None without any.

    The merge is linear, so inner products of the rounding errors give it exactly.

    Args:
        layers: Merged with these coefficients.
        coefficients: Shape (tasks, layers).

    Returns:
        The error's norm over that of the merged weights, and over that of their change.
    """
    wrong, weights, change = 0.0, 0.0, 0.0
    for column, layer in enumerate(layers):
        if layer.error is None or not layer.merged:
            continue
        of_layer = coefficients[:, column].to(layer.error)
        wrong += float(of_layer @ layer.error @ of_layer)
        merged = layer.target.detach().to(layer.base).view(-1)
        weights += float(merged.square().sum())
        change += float((merged - layer.base).square().sum())
    if not weights:
        return None
    wrong = max(wrong, 0.0) ** 0.5
    return wrong / weights**0.5, wrong / change**0.5 if change else 0.0
