"""Task vectors in 8 or 4 bits: whole numbers times one scale per group of entries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

_GROUP = 64  # entries that share a scale in 4 bits
_FUSED = 2**16  # entries from which on a fused kernel is worth its call
_READ = 2**18  # entries of all tasks made floating at once: they stay in the cache


class QuantisedStack(NamedTuple):
    """Task vectors of one tensor, read a few groups at a time or by one fused kernel.

    A value is its code times the group's scale, the largest magnitude over 127 or 7. So
    zeros stay zero, and no value is off by more than half a scale. A group is a row of the
    tensor in 8 bits and 64 entries of one in 4 bits, where two codes share a byte: a
    group's first half has the low bits. Rows that 64 does not divide stay in 8 bits.

    Attributes:
        codes: (tasks, groups, group's size) int8, or uint8 of half the last size.
        scales: (tasks, groups); 0 for a group of zeros.
    """

    codes: Tensor
    scales: Tensor

    @classmethod
    def empty(
        cls,
        tasks: int,
        shape: tuple[int, ...],
        codes: torch.dtype,
        values: torch.dtype = torch.float32,
    ) -> QuantisedStack:
        """Room for the task vectors of a tensor.

        Args:
            tasks: How many.
            shape: Of the tensor; a vector is one row.
            codes: torch.int8 for 8 bits, torch.uint8 for 4.
            values: What is computed in.
        """
        entries = torch.Size(shape).numel()
        row = torch.Size(shape[1:] if len(shape) > 1 else shape).numel()
        if codes == torch.uint8 and row % _GROUP == 0:
            groups, size, row = entries // _GROUP, _GROUP // 2, _GROUP
        else:
            codes, groups, size = torch.int8, entries // max(row, 1), row
        held = torch.empty(tasks, groups, size, dtype=codes)
        return cls(held, torch.empty(tasks, groups, dtype=values))

    @property
    def width(self) -> int:
        """Entries of a group."""
        return self.codes.shape[2] * (2 if self.dtype == torch.uint8 else 1)

    @property
    def shape(self) -> tuple[int, int]:
        """(tasks, entries)."""
        tasks, groups = self.scales.shape
        return tasks, groups * self.width

    @property
    def dtype(self) -> torch.dtype:
        """Of the codes."""
        return self.codes.dtype

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    @property
    def wide(self) -> bool:
        """Whether fused kernels pay off, and need no variant of their own."""
        return self.shape[1] >= _FUSED and self.scales.shape[1] > 1 and self.width > 1

    def map(self, change: Callable[[Tensor], Tensor]) -> QuantisedStack:
        """With codes and scales moved elsewhere."""
        return QuantisedStack(change(self.codes), change(self.scales))

    def parts(self) -> Iterator[slice]:
        """Slices of entries, each some whole groups."""
        tasks, entries = self.shape
        step = max(_READ // max(tasks * self.width, 1), 1) * self.width
        for start in range(0, entries, max(step, 1)):
            yield slice(start, min(start + step, entries))

    def write(self, part: slice, values: Tensor) -> Tensor:
        """Quantise `values` (tasks, entries of whole groups).

        Returns:
            Inner products of the rounding errors, (tasks, tasks) in float64.
        """
        groups, packed = self._groups(part), self.dtype == torch.uint8
        rows = values.view(len(values), -1, self.width)
        limit = 7 if packed else 127
        scales = rows.abs().amax(-1).div_(limit)
        steps = scales.clamp_min(torch.finfo(scales.dtype).tiny)[..., None]
        codes = (rows / steps).round_().clamp_(-limit, limit)
        if packed:
            low, high = (codes + 8).to(torch.uint8).chunk(2, -1)
            codes = low | high << 4
        self.codes[:, groups], self.scales[:, groups] = codes, scales
        wrong = self.read(part, values.device).sub_(values)
        return (wrong @ wrong.t()).double()

    def read(
        self, part: slice, device: torch.device, tasks: slice = slice(None)
    ) -> Tensor:
        """The values of some entries on a device, (tasks, entries)."""
        groups = self._groups(part)
        codes, scales = self.codes[tasks, groups], self.scales[tasks, groups]
        scales = scales.to(device, non_blocking=True)
        halves = _halves(codes.to(device, non_blocking=True), scales.dtype)
        values = halves[0] if len(halves) == 1 else torch.cat(halves, -1)
        return values.mul_(scales[..., None]).flatten(1)

    def _groups(self, part: slice) -> slice:
        width = max(self.width, 1)
        return slice(part.start // width, part.stop // width)


def _halves(codes: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Codes as floating numbers: those of whole groups, or of both halves."""
    if codes.dtype == torch.int8:
        return (codes.to(dtype),)
    return (codes & 15).to(dtype) - 8, (codes >> 4).to(dtype) - 8


class Kernels(NamedTuple):
    """The two products with task vectors, fused so that no floating copy is made.

    Attributes:
        merge_groups, inner_groups: :func:`merge` and :func:`inner`, compiled.
    """

    merge_groups: Callable[..., None]
    inner_groups: Callable[..., Tensor]

    @classmethod
    def compiled(cls) -> Kernels:
        """Compiled at their first calls, for one thread each."""
        options: dict[str, Any] = {"cpp.threads": 1}
        return cls(
            torch.compile(merge, dynamic=True, options=options),
            torch.compile(inner, dynamic=True, options=options),
        )

    def merge(
        self, stack: QuantisedStack, target: Tensor, base: Tensor, weights: Tensor
    ) -> None:
        """target = base + weights (tasks,) x task vectors."""
        shape, weights = (-1, stack.width), weights[:, None] * stack.scales
        self.merge_groups(target.view(shape), base.view(shape), stack.codes, weights)

    def inner(self, stack: QuantisedStack, gradient: Tensor) -> Tensor:
        """<task vector, gradient> of each task."""
        groups = self.inner_groups(gradient.view(-1, stack.width), stack.codes)
        return (groups * stack.scales).sum(1)

    def prepare(self, target: torch.dtype, stack: QuantisedStack) -> None:
        """Compile for stacks of this kind, merged into tensors of dtype `target`."""
        values = stack.scales.new_zeros(stack.shape[1])
        weights = values[: len(stack.codes)].clone()
        self.merge(stack, torch.empty_like(values, dtype=target), values, weights)
        self.inner(stack, values)


def merge(target: Tensor, base: Tensor, codes: Tensor, weights: Tensor) -> None:
    """target = base + sum_t weights[t, group] * codes[t], written to be compiled.

    Args:
        target: (groups, group's size).
        base: Likewise.
        codes: Of a stack.
        weights: Scales times coefficients, (tasks, groups).
    """
    count = base.shape[1] // codes.shape[2]
    sums = list(base.chunk(count, 1))
    for task, weight in zip(codes, weights):  # noqa: B905 no strict where it is traced
        sums = [
            total + half * weight[:, None]
            for total, half in zip(sums, _halves(task, base.dtype))  # noqa: B905
        ]
    for place, total in zip(target.chunk(count, 1), sums):  # noqa: B905
        place.copy_(total)


def inner(gradient: Tensor, codes: Tensor) -> Tensor:
    """<codes of a task, gradient> in each group, (tasks, groups), to be compiled."""
    parts = gradient.chunk(gradient.shape[1] // codes.shape[2], 1)
    rows = []
    for task in codes:
        halves = _halves(task, gradient.dtype)
        products = [h * p for h, p in zip(halves, parts)]  # noqa: B905
        rows.append(sum(products[1:], products[0]).sum(-1))
    return torch.stack(rows)
