"""Model Tinting: pseudo-label losses, which samples to learn from, and a head as a map.

Source: arXiv:2412.19098 (v1 and v2; v3 is named SyMerge).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def pseudo_label_loss(logits: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy to the teacher's labels, per sample.

    Args:
        logits: Of the merged and tinted model, shape (samples, classes).
        teacher: Hard labels, shape (samples,), integer; or soft labels (probabilities),
            shape (samples, classes).

    Returns:
        Shape (samples,), nats.

    Raises:
        ValueError: The shapes do not fit.

    Source: arXiv:2412.19098, hard labels. Deviation: soft ones are an option.
    """
    hard = teacher.dim() == 1 and len(teacher) == len(logits)
    if not hard and teacher.shape != logits.shape:
        raise ValueError(
            f"teacher has shape {tuple(teacher.shape)}, expected ({len(logits)},) for hard"
            f" or {tuple(logits.shape)} for soft labels."
        )
    return F.cross_entropy(logits, teacher, reduction="none")


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
        teacher_labels, teacher_confidence: Shape (samples,).

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


def head_as_feature_map(
    head: Tensor, bias: Tensor, reference: Tensor, tolerance: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """A map of features after which the reference head gives the trained head's logits.

    f' = f + R^+ ((W - R) f + b), hence R f' = W f + b if R has full row rank.

    Args:
        head: W, shape (classes, features).
        bias: b, shape (classes,).
        reference: R, shape (classes, features); in the same scale as W.
        tolerance: Largest entry of R R^+ - I that counts as full row rank.

    Returns:
        Matrix (features, features) and offset (features,) of f' = matrix f + offset, in
        the dtype of `head`; worked out in float64.

    Raises:
        ValueError: R has not full row rank, as with more classes than features.
    """
    reference64 = reference.double()
    inverse = torch.linalg.pinv(reference64)
    identity = torch.eye(len(reference), dtype=torch.float64, device=reference.device)
    error = (reference64 @ inverse - identity).abs().max().item()
    if error > tolerance:
        raise ValueError(
            f"a head of {len(reference)} classes on {reference.shape[1]} features has rank"
            f" {torch.linalg.matrix_rank(reference64).item()}, so the trained head cannot"
            " be expressed through the zero-shot one."
        )
    features = torch.eye(reference.shape[1], dtype=torch.float64, device=head.device)
    matrix = features + inverse @ (head.double() - reference64)
    return matrix.to(head), (inverse @ bias.double()).to(head)
