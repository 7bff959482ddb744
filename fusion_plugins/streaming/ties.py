"""TIES over task vectors that are never in memory: exact thresholds by counting.

A magnitude's float32 bits, read as an integer, order like the magnitude itself. One walk
counts the upper 16 of its 31 bits, a second one the lower 15 among the entries that share
the threshold's upper ones: the k-th smallest magnitude follows exactly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..awd.disentangle import Disentanglement
from ..task_vectors import Block, TaskVectors

_LOW_BITS = 15
_BUCKETS = (2**16, 2**_LOW_BITS)

MERGE_FUNCTIONS = ("sum", "mean", "max")


@dataclass(frozen=True)
class TiesStatistics:
    """What TIES must know of whole task vectors before it can merge any entry.

    Attributes:
        thresholds: Magnitude from which on a task's entry is kept, shape (tasks,).
        majority: Sign of most elected signs, scalar; decides exact draws.
    """

    thresholds: Tensor
    majority: Tensor


def task_vectors_of(block: Block, redundant: Disentanglement | None) -> Tensor:
    """The block's task vectors, disentangled if asked for, shape (tasks, entries)."""
    stack = block.task_vectors
    if redundant is None:
        return stack.flatten(1).float()
    c = redundant.delta_coefficients(block.key).to(stack)
    if c.dim() == 1:
        delta = (c @ stack.flatten(1)).view(stack.shape[1:])
    else:
        delta = torch.einsum("tr,trc->rc", c[:, block.rows], stack)
    return (stack - delta).flatten(1).float()


def ties_statistics(
    task_vectors: TaskVectors,
    keep_ratio: float,
    redundant: Disentanglement | None = None,
    progress: bool = False,
) -> TiesStatistics:
    """Thresholds and majority sign, in three walks over the checkpoints.

    Args:
        task_vectors: Base and experts.
        keep_ratio: Share of each whole task vector to keep, in (0, 1].
        redundant: What to take from every task vector first.
        progress: Show progress bars in bytes read.

    Source: TIES-Merging, arXiv:2306.01708. As in the authors' script the entry at
    position n - floor(n * keep_ratio) counts as kept. Deviation from FusionBench: tied
    weights count once.
    """
    thresholds = _thresholds(task_vectors, keep_ratio, redundant, progress)

    def count_signs(block: Block, counts: Tensor) -> None:
        stack = trimmed(task_vectors_of(block, redundant), thresholds)
        counts += stack.sum(dim=0).sign().sum().long()

    balance = _counted(task_vectors, count_signs, (), "TIES signs", progress)
    return TiesStatistics(thresholds, balance.sign().float())


def _thresholds(
    task_vectors: TaskVectors,
    keep_ratio: float,
    redundant: Disentanglement | None,
    progress: bool,
) -> Tensor:
    """The k-th smallest magnitude of each task vector, exactly; two walks."""
    tasks, entries = len(task_vectors.tasks), task_vectors.numel()
    rank = max(entries - int(entries * keep_ratio), 1)

    def bits_of(block: Block) -> Tensor:
        return task_vectors_of(block, redundant).abs().view(torch.int32)

    def count_high(block: Block, counts: Tensor) -> None:
        high = (bits_of(block) >> _LOW_BITS).long()
        counts.scatter_add_(1, high, counts.new_ones(()).expand(high.shape))

    def count_low(block: Block, counts: Tensor) -> None:
        bits = bits_of(block)
        inside = (bits >> _LOW_BITS) == bucket[:, None].int()
        for total, row, mask in zip(counts, bits, inside, strict=True):
            found = row[mask] & (_BUCKETS[1] - 1)
            total += torch.bincount(found, minlength=_BUCKETS[1])

    shapes = [(tasks, buckets) for buckets in _BUCKETS]
    counts = _counted(task_vectors, count_high, shapes[0], "TIES 1/2", progress)
    bucket, ranks = _bucket_of(counts, torch.full((tasks,), rank))
    counts = _counted(task_vectors, count_low, shapes[1], "TIES 2/2", progress)
    rest, _ = _bucket_of(counts, ranks)
    return ((bucket << _LOW_BITS) + rest).int().view(torch.float32)


def _counted(
    task_vectors: TaskVectors,
    count: Callable[[Block, Tensor], None],
    shape: tuple[int, ...],
    what: str,
    progress: bool,
) -> Tensor:
    """What `count` adds up over all blocks, int64; one walk."""
    lock, total = threading.Lock(), torch.zeros(shape, dtype=torch.int64)
    with task_vectors.progress(what, task_vectors.keys, progress) as bar:

        @torch.no_grad()  # threads start with their own mode
        def add(blocks: Iterator[Block]) -> None:
            part = torch.zeros_like(total)
            for block in blocks:
                count(block, part)
                bar.update(block.nbytes)
            with lock:
                total.add_(part)

        task_vectors.for_each_key(add)
    return total


def _bucket_of(counts: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Bucket that holds the entry of each rank (from 1), and its rank in there."""
    below = counts.cumsum(1)
    bucket = (below < ranks[:, None]).sum(1)
    before = (below - counts).gather(1, bucket[:, None])[:, 0]
    return bucket, ranks - before


def trimmed(stack: Tensor, thresholds: Tensor) -> Tensor:
    """Task vectors with entries below the threshold set to zero, (tasks, entries)."""
    # hardshrink drops what is <= a bound; many times faster than a mask.
    bounds = torch.nextafter(thresholds, torch.zeros_like(thresholds)).tolist()
    out = torch.empty_like(stack)
    for kept, row, bound in zip(out, stack, bounds, strict=True):
        torch.hardshrink(row, bound, out=kept)
    return out


def ties_block(
    stack: Tensor, statistics: TiesStatistics, merge_function: str = "sum"
) -> Tensor:
    """One merged task vector: the entries that agree with the elected sign.

    Args:
        stack: Task vectors, shape (tasks, entries).
        statistics: Of the whole task vectors.
        merge_function: ``sum``, ``mean`` (of the entries that are not zero) or ``max``
            (the largest magnitude, with the elected sign).

    Returns:
        Shape (entries,).
    """
    stack = trimmed(stack, statistics.thresholds)
    sign = stack.sum(dim=0).sign()
    sign = torch.where(sign == 0, statistics.majority, sign)
    # Elected sign zero (an exact draw over the whole model) counts as negative.
    sign = torch.where(sign > 0, 1.0, -1.0)
    agreeing = (stack * sign).relu_()  # magnitudes of those that agree, else zero
    if merge_function == "sum":
        merged = agreeing.sum(dim=0)
    elif merge_function == "mean":
        merged = agreeing.sum(dim=0) / (agreeing != 0).sum(dim=0).clamp(min=1)
    else:
        merged = agreeing.amax(dim=0)
    return merged * sign
