"""AdaMerging's objective: the entropy of predictions on unlabelled samples."""

from __future__ import annotations

from torch import Tensor


def prediction_entropy(logits: Tensor, eps: float = 0.0) -> Tensor:
    """Shannon entropy of softmax(logits), per sample.

    H = -sum_c p_c log p_c

    Args:
        logits: Shape (samples, classes).
        eps: Added to p inside the logarithm. Deviation: 0 (log_softmax) is the authors'
            script; FusionBench's port uses 1e-8.

    Returns:
        Shape (samples,), in nats.

    Raises:
        ValueError: `logits` is not (samples, classes).

    Source: arXiv:2310.02575, the entropy minimisation objective.
    """
    if logits.dim() != 2:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}, expected (samples, classes)."
        )
    if eps:
        probabilities = logits.softmax(dim=-1)
        return -(probabilities * (probabilities + eps).log()).sum(dim=-1)
    log_probabilities = logits.log_softmax(dim=-1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=-1)
