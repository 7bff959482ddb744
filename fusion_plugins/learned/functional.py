"""Learning from the experts' labels, with coefficients alone or with tints.

Source: arXiv:2412.19098 (v1 and v2; v3 is named SyMerge).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def pseudo_label_loss(logits: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy to the teacher's labels, per sample.

    Args:
        logits: Of the merged model, shape (samples, classes).
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
