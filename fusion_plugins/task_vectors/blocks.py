"""Tensors of all models read together, a bounded number of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

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


def row_slices(shape: tuple[int, ...], entries: int | None = None) -> Iterator[slice]:
    """Slices over the first dimension; vectors and scalars are one row.

    Args:
        shape: Of the tensor.
        entries: Of one slice, if it has several rows; BLOCK_ENTRIES by default.
    """
    if len(shape) < 2:
        yield slice(0, 1)
        return
    row_size = max(torch.Size(shape[1:]).numel(), 1)
    step = max((entries or BLOCK_ENTRIES) // row_size, 1)
    # An empty tensor is walked too, so that every key yields a block.
    for start in range(0, max(shape[0], 1), step):
        yield slice(start, min(start + step, shape[0]))


def cached_entries(shape: tuple[int, ...], models: int) -> int:
    """Entries of blocks that stay in a core's cache, if that changes no bit."""
    apart = torch.Size(shape[1:]).numel() % _VECTOR == 0
    return min(_CACHED // models, BLOCK_ENTRIES) if apart else BLOCK_ENTRIES
