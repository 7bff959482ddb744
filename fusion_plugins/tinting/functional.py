"""Model Tinting: the loss of dense tasks, which samples to learn from, and a head as a map.

Source: arXiv:2412.19098 (v1 and v2; v3 is named SyMerge).
"""

from __future__ import annotations

import torch
from torch import Tensor


def output_loss(outputs: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference from the teacher's outputs, per sample.

    Args:
        outputs: Of the merged and tinted model, shape (samples, ...).
        teacher: Of the same shape.

    Returns:
        Shape (samples,), in the outputs' unit.

    Raises:
        ValueError: The shapes do not fit.

    Source: arXiv:2412.19098, dense prediction tasks.
    """
    if outputs.shape != teacher.shape:
        raise ValueError(
            f"teacher has shape {tuple(teacher.shape)}, expected {tuple(outputs.shape)}."
        )
    return (outputs - teacher).abs().flatten(1).mean(dim=1)


def confidence_gap_selection(
    logits: Tensor, teacher_labels: Tensor, teacher_confidence: Tensor
) -> Tensor:
    """Samples to learn from: drop those where the merged model disagrees and is surer.

    keep = agree or conf_teacher >= conf_merged, with conf = max softmax

    Args:
        logits: Of the merged and tinted model, shape (samples, classes).
        teacher_labels: Shape (samples,).
        teacher_confidence: Shape (samples,).

    Returns:
        Bool, shape (samples,).

    Source: arXiv:2412.19098, confidence-gap sampling.
    """
    confidence, predicted = logits.detach().softmax(dim=-1).max(dim=-1)
    return (predicted == teacher_labels) | (teacher_confidence >= confidence)


def top_p_selection(teacher_confidence: Tensor, share: float) -> Tensor:
    """The given share of a batch's samples on which the teacher is surest.

    Args:
        teacher_confidence: Shape (samples,).
        share: In (0, 1]; at least one sample is kept.

    Returns:
        Bool, shape (samples,).
    """
    keep = torch.zeros_like(teacher_confidence, dtype=torch.bool)
    if len(teacher_confidence):
        count = max(round(len(teacher_confidence) * share), 1)
        keep[teacher_confidence.topk(count).indices] = True
    return keep
