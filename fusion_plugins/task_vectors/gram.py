"""Inner products of task vectors, accumulated in float64 in one walk over the files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .collection import Block, TaskVectors

GRANULARITIES = ("model", "tensor", "row")

# Columns converted to float64 at once: small enough to stay in cache.
_COLUMNS = 2**15


@dataclass(frozen=True)
class GramMatrices:
    """Gram matrices of the task vectors, one per group of entries.

    Attributes:
        granularity: ``model`` (one group), ``tensor`` (one per tensor) or ``row`` (one
            per row of each tensor; vectors and scalars are one row).
        keys: The tensors that were walked.
        groups: Groups per key: how many matrices belong to it (with ``model``, all keys
            share the only one).
        values: Shape (groups, tasks, tasks), float64. values[g, i, j] is the inner
            product of the task vectors i and j over the group's entries.
    """

    granularity: str
    keys: tuple[str, ...]
    groups: tuple[int, ...]
    values: Tensor

    def total(self) -> Tensor:
        """Shape (tasks, tasks): inner products over all entries walked."""
        return self.values.sum(dim=0)

    def group_slice(self, key: str) -> slice:
        """Where the matrices of `key` stand in `values`."""
        if self.granularity == "model":
            return slice(0, 1)
        start = sum(self.groups[: self.keys.index(key)])
        return slice(start, start + self.groups[self.keys.index(key)])


def gram_matrices(
    task_vectors: TaskVectors,
    granularity: str = "model",
    keys: Sequence[str] | None = None,
    progress: bool = False,
) -> GramMatrices:
    """Walk over all checkpoints once and accumulate inner products in float64.

    Args:
        task_vectors: Base and experts.
        granularity: ``model``, ``tensor`` or ``row``.
        keys: Tensors to walk; all by default.
        progress: Show a progress bar in bytes read.

    Raises:
        ValueError: Unknown granularity, or a checkpoint holds NaN or Inf.
    """
    if granularity not in GRANULARITIES:
        raise ValueError(
            f"granularity is {granularity!r}, expected one of {GRANULARITIES}."
        )
    keys = task_vectors.keys if keys is None else tuple(keys)
    with task_vectors.progress("Gram matrix", keys, progress) as bar:

        def tensor_gram(blocks: Iterator[Block]) -> Tensor:
            parts = []
            for block in blocks:
                parts.append(_block_gram(task_vectors, block, granularity))
                bar.update(block.base.numel() * task_vectors.entry_bytes(block.key))
            gram = torch.cat(parts)
            return gram if granularity == "row" else gram.sum(dim=0, keepdim=True)

        parts = task_vectors.for_each_key(tensor_gram, keys)
    values = torch.cat(parts)
    if granularity == "model":
        values = values.sum(dim=0, keepdim=True)
    return GramMatrices(granularity, keys, tuple(len(p) for p in parts), values)


def _block_gram(task_vectors: TaskVectors, block: Block, granularity: str) -> Tensor:
    stack = block.task_vectors
    if granularity == "row":
        by_row = stack.transpose(0, 1).double()
        gram = by_row @ by_row.transpose(1, 2)
    else:
        gram = _flat_gram(stack.flatten(1))[None]
    if not torch.isfinite(gram).all():
        task_vectors.raise_not_finite(block)
    return gram


def _flat_gram(stack: Tensor) -> Tensor:
    """Upper triangle row by row: a quarter less time than the full product takes."""
    tasks = stack.shape[0]
    gram = stack.new_zeros(tasks, tasks, dtype=torch.float64)
    for columns in stack.split(_COLUMNS, dim=1):
        columns = columns.double()
        for i in range(tasks):
            gram[i, i:] += columns[i:] @ columns[i]
    return gram.triu() + gram.triu(1).t()


def cosine_matrix(gram: Tensor) -> Tensor:
    """Cosines from a Gram matrix, shape (..., tasks, tasks); 0 beside a zero vector."""
    norms = torch.diagonal(gram, dim1=-2, dim2=-1).clamp_min(0).sqrt()
    outer = norms[..., :, None] * norms[..., None, :]
    return torch.where(outer > 0, gram / outer, torch.zeros_like(gram))
