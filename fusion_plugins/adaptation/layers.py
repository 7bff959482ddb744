"""One merged tensor: reading what it is merged from, merging, and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..task_vectors import TaskVectors

# Entries per task worked on at once: what is written stays in the cache between copying
# the base and adding the task vectors, and conversions need little memory.
_CHUNK = 2**18


@dataclass
class Layer:
    """One merged tensor: where it lives in the module, and what it is merged from."""

    key: str
    target: Tensor  # the module's parameter or buffer
    base: Tensor  # (entries,)
    stack: Tensor  # (tasks, entries), zero rows included
    merged: bool = True

    def merge(self, weights: Tensor, streamed: bool = False) -> None:
        """Write base + weights (tasks,) x task vectors into the module."""
        weights = weights.to(self.base)
        target, stack = self.target.data.view(-1), self.stack
        direct = stack.dtype == weights.dtype == target.dtype and not streamed
        for part in _chunks(stack.shape[1]):
            base, values = self.base[part], stack[:, part]
            if direct:
                torch.addmv(base, values.t(), weights, out=target[part])
            else:
                values = values.to(self.base, non_blocking=True)
                target[part] = torch.addmv(base, values.t(), weights)

    def write_expert(self, task: int) -> None:
        """Write base + one task vector into the module, reading no other."""
        target = self.target.data.view(-1)
        for part in _chunks(len(target)):
            row = self.stack[task, part].to(self.base)
            target[part] = torch.add(self.base[part], row)

    def take_gradient(self) -> Tensor:
        """<task vector, gradient> of each task, shape (tasks,); drops the gradient."""
        assert self.target.grad is not None
        gradient = self.target.grad.reshape(-1).to(self.base)
        same = self.stack.dtype == gradient.dtype
        total = gradient.new_zeros(len(self.stack))
        for part in _chunks(gradient.numel(), whole=same):
            values = self.stack[:, part].to(gradient, non_blocking=True)
            total = total + torch.mv(values, gradient[part])
        self.target.grad = None
        return total


def _chunks(entries: int, whole: bool = False) -> Sequence[slice]:
    if whole:
        return [slice(0, entries)]
    return [slice(at, min(at + _CHUNK, entries)) for at in range(0, entries, _CHUNK)]


def read_stacks(
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
