"""TIES over task vectors that are never in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..awd.disentangle import Disentanglement
from ..task_vectors import Block, TaskVectors
from . import counting
from .counting import Windows, counted

MERGE_FUNCTIONS = ("sum", "mean", "max")


@dataclass(frozen=True)
class TiesStatistics:
    """What TIES must know of whole task vectors before it can merge any entry.

    Attributes:
        thresholds: Magnitude from which on a task's entry is kept, shape (tasks,).
        majority: Sign of most elected signs, scalar; decides exact draws. NaN if it is
            not known yet.
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
    """Thresholds, mostly in one walk over the checkpoints, and perhaps the majority sign.

    The walk starts with thresholds from a sample of rows, and counts signs with them.
    Where the files hold few different values, as in bfloat16, they mostly turn out to be
    the thresholds of all entries. Where not, exact draws are rare.

    Args:
        task_vectors: Base and experts.
        keep_ratio: Share of each whole task vector to keep, in (0, 1].
        redundant: What to take from every task vector first.
        progress: Show progress bars in bytes read.

    Source: TIES-Merging, arXiv:2306.01708. As in the authors' script the entry at
    position n - floor(n * keep_ratio) counts as kept. Deviation from FusionBench: tied
    weights count once.
    """
    shape = counting.counts_shape(len(task_vectors.tasks))
    expected = _expected(task_vectors, keep_ratio, redundant)
    thresholds, balance = _magnitudes(expected), torch.zeros(())

    def count_all(windows: Windows) -> Tensor:
        def count(block: Block, counts: Tensor, balance: Tensor) -> None:
            stack = task_vectors_of(block, redundant)
            counting.count_in(windows, stack, counts)
            balance += _balance(stack, thresholds)

        nonlocal balance
        what = "TIES thresholds"
        counts, balance = counted(
            task_vectors, count, [shape, ()], what=what, progress=progress
        )
        return counts

    found = counting.search(count_all, keep_ratio, counting.around(expected))
    known = torch.equal(found, expected)
    majority = balance.sign().float() if known else torch.tensor(torch.nan)
    return TiesStatistics(_magnitudes(found), majority)


def _expected(
    task_vectors: TaskVectors, keep_ratio: float, redundant: Disentanglement | None
) -> Tensor:
    """Bits of the thresholds of a sample, shape (tasks,)."""
    tasks, sample = len(task_vectors.tasks), counting.sampled_rows(task_vectors)

    def count_sample(windows: Windows) -> Tensor:
        def count(block: Block, counts: Tensor) -> None:
            counting.count_in(windows, task_vectors_of(block, redundant), counts)

        return counted(task_vectors, count, [counting.counts_shape(tasks)], sample)[0]

    return counting.search(count_sample, keep_ratio, counting.whole_range(tasks))


def majority_sign(
    task_vectors: TaskVectors,
    thresholds: Tensor,
    redundant: Disentanglement | None = None,
    progress: bool = False,
) -> Tensor:
    """Sign of most elected signs; one walk over the checkpoints.

    Args:
        task_vectors: Base and experts.
        thresholds: As in :class:`TiesStatistics`.
        redundant: As for :func:`ties_statistics`.
        progress: Likewise.
    """

    def count(block: Block, balance: Tensor) -> None:
        balance += _balance(task_vectors_of(block, redundant), thresholds)

    (balance,) = counted(
        task_vectors, count, [()], what="TIES signs", progress=progress
    )
    return balance.sign().float()


def _magnitudes(bits: Tensor) -> Tensor:
    return bits.int().view(torch.float32)


def _balance(stack: Tensor, thresholds: Tensor) -> Tensor:
    """Number of positive elected signs less that of negative ones."""
    trim_(stack, thresholds)
    return stack.sum(dim=0).sign_().sum(dtype=torch.float64).long()


def trim_(stack: Tensor, thresholds: Tensor) -> None:
    """Set entries below the threshold to zero, shape (tasks, entries)."""
    # hardshrink drops what is <= a bound; many times faster than a mask.
    bounds = torch.nextafter(thresholds, torch.zeros_like(thresholds)).tolist()
    for row, bound in zip(stack, bounds, strict=True):
        torch.hardshrink(row, bound, out=row)


def ties_block_(
    stack: Tensor,
    statistics: TiesStatistics,
    merge_function: str = "sum",
    count_majority: Callable[[], Tensor] | None = None,
) -> Tensor:
    """One merged task vector: the entries that agree with the elected sign.

    Args:
        stack: Task vectors, shape (tasks, entries); written over, to stay in the cache.
        statistics: Of the whole task vectors.
        merge_function: ``sum``, ``mean`` (of the entries that are not zero) or ``max``
            (the largest magnitude, with the elected sign).
        count_majority: Called at exact draws while the majority sign is not known.

    Returns:
        Shape (entries,).
    """
    trim_(stack, statistics.thresholds)
    sign = _elected(stack, statistics.majority, count_majority)
    agreeing = stack.mul_(sign).relu_()  # magnitudes of those that agree, else zero
    if merge_function == "sum":
        merged = agreeing.sum(dim=0)
    elif merge_function == "mean":
        merged = agreeing.sum(dim=0) / (agreeing != 0).sum(dim=0).clamp(min=1)
    else:
        merged = agreeing.amax(dim=0)
    return merged.mul_(sign)


def _elected(
    stack: Tensor, majority: Tensor, count_majority: Callable[[], Tensor] | None
) -> Tensor:
    """1 or -1 for each entry of trimmed task vectors, shape (entries,)."""
    sign = stack.sum(dim=0).sign_()
    if count_majority is not None and majority.isnan():
        drawn = (sign == 0) & stack.any(dim=0)
        if drawn.any() and count_majority() > 0:
            sign[drawn] = 1
    # A majority of zero (an exact draw over the whole model) counts as negative.
    return sign.add_(0.5 if majority > 0 else -0.5).sign_()
