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

from fusion_plugins.awd.disentangle import Disentanglement
from fusion_plugins.task_vectors import Block, TaskVectors

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

    def bits_of(block: Block) -> Tensor:
        return task_vectors_of(block, redundant).abs().view(torch.int32)

    rank = max(task_vectors.numel() - int(task_vectors.numel() * keep_ratio), 1)
    high = _counted(
        task_vectors,
        lambda block: _histogram(bits_of(block) >> _LOW_BITS, _BUCKETS[0]),
        "TIES thresholds, upper bits" if progress else None,
    )
    bucket, ranks = _bucket_of(high, torch.full((len(high),), rank))

    def low_counts(block: Block) -> Tensor:
        bits = bits_of(block)
        inside = (bits >> _LOW_BITS) == bucket[:, None].int()
        chosen = [row[mask] & (_BUCKETS[1] - 1) for row, mask in zip(bits, inside)]
        return _histogram(chosen, _BUCKETS[1])

    low = _counted(
        task_vectors, low_counts, "TIES thresholds, lower bits" if progress else None
    )
    rest, _ = _bucket_of(low, ranks)
    thresholds = ((bucket << _LOW_BITS) + rest).int().view(torch.float32)
    signs = _counted(
        task_vectors,
        lambda block: _elected(
            trimmed(task_vectors_of(block, redundant), thresholds)
        ).sum()[None],
        "TIES signs" if progress else None,
    )
    return TiesStatistics(thresholds, signs.sign().float()[0])


def _counted(
    task_vectors: TaskVectors, count: Callable[[Block], Tensor], what: str | None
) -> Tensor:
    """Sum of `count` over all blocks; one walk."""
    lock, total = threading.Lock(), []
    with task_vectors.progress(what or "", task_vectors.keys, what is not None) as bar:

        @torch.no_grad()  # threads start with their own mode
        def add(blocks: Iterator[Block]) -> None:
            for block in blocks:
                values = count(block)
                with lock:
                    if total:
                        total[0] += values
                    else:
                        total.append(values.clone())
                bar.update(block.base.numel() * task_vectors.entry_bytes(block.key))

        task_vectors.for_each_key(add)
    return total[0]


def _histogram(rows, buckets: int) -> Tensor:
    return torch.stack([torch.bincount(row, minlength=buckets) for row in rows])


def _bucket_of(counts: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Bucket that holds the entry of each rank (from 1), and its rank in there."""
    below = counts.cumsum(1)
    bucket = (below < ranks[:, None]).sum(1)
    before = (below - counts).gather(1, bucket[:, None])[:, 0]
    return bucket, ranks - before


def trimmed(stack: Tensor, thresholds: Tensor) -> Tensor:
    """Task vectors with their small entries set to zero, shape (tasks, entries)."""
    return stack.masked_fill(stack.abs() < thresholds[:, None], 0)


def _elected(stack: Tensor) -> Tensor:
    return stack.sum(dim=0).sign()


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
    sign = _elected(stack)
    sign = torch.where(sign == 0, statistics.majority, sign)
    # Elected sign zero (an exact draw over the whole model) counts as negative.
    agreeing = stack * torch.where(sign > 0, stack > 0, stack < 0)
    if merge_function == "sum":
        return agreeing.sum(dim=0)
    if merge_function == "mean":
        return agreeing.sum(dim=0) / (agreeing != 0).sum(dim=0).clamp(min=1)
    return agreeing.abs().amax(dim=0) * sign
