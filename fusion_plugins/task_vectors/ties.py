"""TIES trimming of task vectors: keep the largest entries, drop those that disagree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def magnitude_threshold(task_vector: Sequence[Tensor], keep_ratio: float) -> Tensor:
    """The magnitude from which on an entry belongs to the top `keep_ratio`.

    Args:
        task_vector: All tensors of one task vector, any shapes.
        keep_ratio: Share of entries to keep, over all tensors together.

    Returns:
        Scalar; entries with at least this magnitude are kept. As in the authors' script
        the element at position n - floor(n * keep_ratio) counts as kept too.

    Raises:
        ValueError: `keep_ratio` is not in (0, 1].
    """
    if not 0 < keep_ratio <= 1:
        raise ValueError(f"keep_ratio is {keep_ratio!r}, expected a share in (0, 1].")
    magnitudes = torch.cat([tensor.flatten().abs() for tensor in task_vector])
    rank = max(magnitudes.numel() - int(magnitudes.numel() * keep_ratio), 1)
    return magnitudes.kthvalue(rank).values


def ties_trim_(stacks: Sequence[Tensor], keep_ratio: float = 0.2) -> None:
    """Trim task vectors in place, as AdaMerging++ does before training.

    Every task keeps its entries of largest magnitude; each entry's sign is elected by
    the sum over tasks; entries that disagree with it become zero. An entry whose sum is
    zero takes the sign of the majority of all entries.

    Args:
        stacks: One tensor (tasks, entries) per layer; changed in place.
        keep_ratio: Share of each whole task vector to keep, 0.2 in the paper.

    Source: TIES-Merging, arXiv:2306.01708, as used by AdaMerging++ (arXiv:2310.02575).
    """
    for task in range(stacks[0].shape[0]):
        threshold = magnitude_threshold([stack[task] for stack in stacks], keep_ratio)
        for stack in stacks:
            stack[task].masked_fill_(stack[task].abs() < threshold, 0)
    signs = [stack.sum(dim=0).sign() for stack in stacks]
    majority = torch.stack([sign.sum() for sign in signs]).sum().sign()
    for stack, sign in zip(stacks, signs, strict=True):
        sign = torch.where(sign == 0, majority, sign)
        # Elected sign zero (an exact draw over the whole model) counts as negative.
        agrees = torch.where(sign > 0, stack > 0, stack < 0)
        stack.mul_(agrees)
