"""Inner products of task vectors in one walk over the files, accumulated in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .blocks import Block
from .collection import TaskVectors

GRANULARITIES = ("model", "tensor", "row")

# Entries converted to float64 at once, of all tasks together: small enough to stay in
# cache.
_ENTRIES = 2**17
# Products of so many entries are summed in float32, the sums in float64. An inner product
# is off by less than 2e-5 of the vectors' norms; 1e-9 to 2e-7 in what we tried.
_RUN = 256
_LARGE = 2**13  # entries of a block, per task; smaller ones gain nothing
# Squared norms of blocks whose squares float32 can hold.
_SAFE = (1e-20, 1e30)


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
        ValueError: Unknown granularity, or a checkpoint holds NaN, Inf or values that are
            too large.
    """
    if granularity not in GRANULARITIES:
        raise ValueError(
            f"granularity is {granularity!r}, expected one of {GRANULARITIES}."
        )
    keys = task_vectors.keys if keys is None else tuple(keys)
    sums = _RowSums if granularity == "row" else _EntrySums
    with task_vectors.progress("Gram matrix", keys, progress) as bar:

        @torch.no_grad()  # threads start with their own mode
        def tensor_gram(blocks: Iterator[Block]) -> Tensor:
            gram = sums(len(task_vectors.tasks))
            for block in blocks:
                gram.add(block.task_vectors)
                bar.update(block.nbytes)
            values = gram.values()
            if not torch.isfinite(values).all():
                task_vectors.raise_not_finite(block)
                _raise_too_large(task_vectors.tasks, block.key, values)
            return values

        parts = task_vectors.for_each_key(tensor_gram, keys)
    values = torch.cat(parts)
    if granularity == "model":
        values = values.sum(dim=0, keepdim=True)
    return GramMatrices(granularity, keys, tuple(len(p) for p in parts), values)


def _raise_too_large(tasks: Sequence[str], key: str, values: Tensor) -> None:
    squares = values.diagonal(dim1=1, dim2=2).sum(0)
    task = tasks[int(squares.isfinite().int().argmin())]
    raise ValueError(
        f"expert '{task}': in tensor '{key}' it is so far from the base that products of"
        " the differences overflow. Leave out or check this checkpoint, or leave the"
        f" tensor as in the base with keep=['{key}']."
    )


class _EntrySums:
    """Inner products over all entries of a tensor."""

    def __init__(self, tasks: int):
        self._gram = torch.zeros(tasks, tasks, dtype=torch.float64, device="cpu")
        width = max(_ENTRIES // tasks, 1)
        self._columns = torch.empty(tasks, width, dtype=torch.float64, device="cpu")
        self._products: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}

    def add(self, stack: Tensor) -> None:
        """Take in task vectors, shape (tasks, rows, row size)."""
        entries = stack.flatten(1)
        in_runs = entries.shape[1] // _RUN * _RUN
        if in_runs >= _LARGE and self._add_runs(entries[:, :in_runs]):
            entries = entries[:, in_runs:]
        if entries.numel():
            self._add_exactly(entries)

    def _add_runs(self, entries: Tensor) -> bool:
        """Take in entries by float32 products, if those are exact enough."""
        if entries.dtype != torch.float32 or not _products_are_exact():
            return False
        runs = entries.unflatten(1, (-1, _RUN)).transpose(0, 1)
        products = torch.bmm(runs, runs.transpose(1, 2))
        if products.dtype != torch.float32:  # under autocast
            return False
        gram = products.sum(0, dtype=torch.float64)
        squares = gram.diagonal()
        fits = bool(_SAFE[0] <= squares.min() and squares.max() <= _SAFE[1])
        if fits:
            self._gram += gram
        return fits

    def _add_exactly(self, entries: Tensor) -> None:
        for part in entries.split(self._columns.shape[1], dim=1):
            width = part.shape[1]
            self._columns[:, :width].copy_(part)
            # Row by row of the upper triangle: faster than the full product.
            for row, factors, factor in self._products_of(width):
                row.addmv_(factors, factor)

    def _products_of(self, width: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """What to add to each row of the triangle; views, made once for each width."""
        if width not in self._products:
            columns = self._columns[:, :width]
            self._products[width] = [
                (self._gram[i, i:], columns[i:], columns[i])
                for i in range(len(columns))
            ]
        return self._products[width]

    def values(self) -> Tensor:
        """Shape (1, tasks, tasks)."""
        return (self._gram.triu() + self._gram.triu(1).t())[None]


def _products_are_exact() -> bool:
    """Whether float32 products are computed as such; users may allow bfloat16."""
    backends: Any = torch.backends
    places = (getattr(backends.mkldnn, "matmul", None), backends.mkldnn, backends)
    named = [getattr(place, "fp32_precision", "none") for place in places]
    asked = next((name for name in named if name != "none"), None)
    if asked is None:
        return torch.get_float32_matmul_precision() == "highest"
    return asked == "ieee"


class _RowSums:
    """Inner products over each row of a tensor."""

    def __init__(self, tasks: int):
        self._parts = [torch.zeros(0, tasks, tasks, dtype=torch.float64, device="cpu")]

    def add(self, stack: Tensor) -> None:
        """Take in task vectors, shape (tasks, rows, row size)."""
        tasks, _, row_size = stack.shape
        at_once = max(_ENTRIES // (tasks * max(row_size, 1)), 1)
        for part in stack.transpose(0, 1).split(at_once):
            part = part.double()
            self._parts.append(part @ part.transpose(1, 2))

    def values(self) -> Tensor:
        """Shape (rows, tasks, tasks)."""
        return torch.cat(self._parts)


def cosine_matrix(gram: Tensor) -> Tensor:
    """Cosines from `gram`, shape (..., tasks, tasks); 0 beside a zero vector."""
    norms = torch.diagonal(gram, dim1=-2, dim2=-1).clamp_min(0).sqrt()
    outer = norms[..., :, None] * norms[..., None, :]
    return torch.where(outer > 0, gram / outer, torch.zeros_like(gram))
