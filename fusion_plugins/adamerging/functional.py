"""AdaMerging's objectives on unlabelled samples: entropy, alone or against the marginal.

The third, cross-entropy to the experts' labels, is `learned.functional.pseudo_label_loss`.
"""

from __future__ import annotations

import torch
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


def marginal_negentropy(mean_probabilities: Tensor) -> Tensor:
    """Negative entropy of a batch's mean prediction: high if one class takes over.

    -H(q) = sum_c q_c log q_c, with q = mean over the batch of softmax(logits)

    With the mean of :func:`prediction_entropy` it is the information-maximisation loss,
    mean_x H(p(x)) - weight * H(q): every prediction sure, all together diverse. With
    weight 1 that is minus the mutual information of input and predicted class.

    Args:
        mean_probabilities: q, shape (..., classes).

    Returns:
        Shape (...), in nats, between -log(classes) and 0.

    Source: SHOT, arXiv:2002.08546, L_div. Deviation: it adds 1e-5 inside the logarithm.
    """
    tiny = torch.finfo(mean_probabilities.dtype).tiny  # no slope of infinity at 0
    return (mean_probabilities * mean_probabilities.clamp_min(tiny).log()).sum(dim=-1)
