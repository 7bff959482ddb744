"""A trained head expressed as a map of features before the head it started from."""

from __future__ import annotations

import torch
from torch import Tensor


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
