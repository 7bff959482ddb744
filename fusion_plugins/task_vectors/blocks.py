"""Tensors of all models read together, a bounded number of rows at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Fills a buffer with a tensor, or rows of its first dimension, converting the dtype.
Reader = Callable[[Tensor, "slice | None"], None]

# Entries of one tensor looked at together: bounds memory at (tasks + 2) blocks.
BLOCK_ENTRIES = 2**18
# Entries of all models together that a core's own cache holds, in the compute dtype.
_CACHED = 2**18
# Products end in the same bits wherever rows of so many entries are parted: the processor
# takes what is left of a block another way.
_VECTOR = 64


@dataclass(frozen=True)
class Block:
    """Some rows of one tensor, for the base and every task.

    Attributes:
        key: Tensor name.
        rows: Which rows of its first dimension; the whole tensor if it has none.
        base: Shape (rows, row size); the pretrained values in the compute dtype.
        task_vectors: Shape (tasks, rows, row size); expert minus base. Both are in a
            buffer that is used again: copy what must outlive the next block.
        nbytes: What was read for it from all checkpoints.
    """

    key: str
    rows: slice
    base: Tensor
    task_vectors: Tensor
    nbytes: int


def block_shape(shape: tuple[int, ...], rows: slice | None) -> tuple[int, int]:
    """Rows and row size of some rows; None for the whole of a vector or scalar."""
    if rows is None:
        return 1, torch.Size(shape).numel()
    count = len(range(*rows.indices(shape[0])))
    return count, torch.Size(shape[1:]).numel()


def row_slices(
    shape: tuple[int, ...], entries: int | None = None, start: int = 0, every: int = 1
) -> Iterator[slice]:
    """Slices over the first dimension; vectors and scalars are one row.

    Args:
        shape: Of the tensor.
        entries: Of one slice, where a row has fewer; BLOCK_ENTRIES by default.
        start: Number of the first slice to yield.
        every: Yield one of so many.
    """
    starts = _starts(shape, entries)
    rows = shape[0] if len(shape) > 1 else 1
    for first in starts[start::every]:
        yield slice(first, min(first + starts.step, rows))


def _starts(shape: tuple[int, ...], entries: int | None) -> range:
    """The first row of each slice."""
    if len(shape) < 2:
        return range(1)
    row_size = max(torch.Size(shape[1:]).numel(), 1)
    # An empty tensor is walked too, so that every key yields a block.
    return range(0, max(shape[0], 1), max((entries or BLOCK_ENTRIES) // row_size, 1))


def read_blocks(
    shape: tuple[int, ...],
    rows: Iterable[slice],
    readers: Sequence[Reader],
    dtype: torch.dtype,
    buffers: dict[torch.dtype, Tensor],
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows of one tensor, what the base has in them, and the task vectors.

    Args:
        shape: Of the tensor.
        rows: Those of each block.
        readers: Of the base and the experts.
        dtype: Of what is yielded.
        buffers: What it stands in; grows, and serves the next tensor as well.
    """
    held = None
    for some in rows:
        view = None if len(shape) < 2 else some
        size = block_shape(shape, view)
        if size != held:
            needed = len(readers) * size[0] * size[1]
            if dtype not in buffers or buffers[dtype].numel() < needed:
                buffers[dtype] = torch.empty(needed, dtype=dtype)
            values = buffers[dtype][:needed].view(len(readers), *size)
            base, task_vectors, held = values[0], values[1:], size
            read_into = list(zip(readers, values.flatten(1), strict=True))
        for read, flat in read_into:
            read(flat, view)
        task_vectors.sub_(base)
        yield some, base, task_vectors


def cached_entries(shape: tuple[int, ...], models: int) -> int:
    """Entries of blocks that stay in a core's cache, if that changes no bit."""
    apart = torch.Size(shape[1:]).numel() % _VECTOR == 0
    return min(_CACHED // models, BLOCK_ENTRIES) if apart else BLOCK_ENTRIES


def spread_slices(
    shapes: Mapping[str, tuple[int, ...]], entries: int, every: int
) -> dict[str, list[slice]]:
    """One of so many slices of all tensors together, at equal distances.

    Args:
        shapes: Of the tensors, by name.
        entries: As for :func:`row_slices`.
        every: Likewise.
    """
    chosen, start = {}, 0
    for key, shape in shapes.items():
        chosen[key] = list(row_slices(shape, entries, start, every))
        start += len(chosen[key]) * every - len(_starts(shape, entries))
    return chosen


class _Staging(threading.local):
    """Room for what is read, one for each thread: several would not fit into its cache."""

    def __init__(self) -> None:
        self._bytes = torch.empty(2**21, dtype=torch.uint8)
        self._taken = self._bytes, self._bytes.numpy().data

    def take(self, entries: int, dtype: torch.dtype) -> tuple[Tensor, memoryview]:
        """Room for so many entries, as a tensor and as what a file reads into."""
        held = self._taken[0]
        if held.numel() != entries or held.dtype != dtype:
            size = entries * dtype.itemsize
            fits = size <= self._bytes.numel()
            taken = self._bytes[:size] if fits else torch.empty(size, dtype=torch.uint8)
            self._taken = taken.view(dtype), taken.numpy().data
        return self._taken


STAGING = _Staging()
