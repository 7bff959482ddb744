"""Blocks: some rows of one tensor, for the base and every task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Entries of one tensor looked at together: bounds memory at (tasks + 2) blocks, and a
# block of all tasks stays in the processor's cache between reading and using it.
BLOCK_ENTRIES = 2**18


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


def row_slices(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices over the first dimension; vectors and scalars are one row."""
    if len(shape) < 2:
        yield slice(0, 1)
        return
    row_size = max(torch.Size(shape[1:]).numel(), 1)
    step = max(BLOCK_ENTRIES // row_size, 1)
    # An empty tensor is walked too, so that every key yields a block.
    for start in range(0, max(shape[0], 1), step):
        yield slice(start, min(start + step, shape[0]))
