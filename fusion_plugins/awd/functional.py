"""Adaptive Weight Disentanglement: the objective, its gradient and a solver.

One redundant vector delta is taken from every task vector so that the rest becomes
orthogonal. With delta = 0 at the start, every gradient is a combination of the task
vectors and delta, so delta = sum_k c[k] * tau_k throughout and the whole descent runs on
c with the Gram matrix of the task vectors alone. That is the full-space descent exactly,
at O(T^2) an iteration; :mod:`.full_space` has the full-space one, for reference.

Source: arXiv:2411.18729, eq. for L_O and L_R.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Descent:
    """Settings of the gradient descent on delta.

    Attributes:
        alpha: Weight of the norm of delta in the objective; no unit.
        lr: Step size (beta in the paper).
        iterations: Number of steps.
        momentum: As in torch.optim.SGD. Deviation: the paper has none.
        weight_decay: As in torch.optim.SGD. Deviation: the paper has none.
        tolerance: Stop once the relative change of the loss falls below it for ten
            steps in a row; 0 runs all iterations, as the paper does.
        orthogonality_weight: Factor of the mean absolute cosine in the objective; one
            number, or one per group, shape (groups,).
        shared_cosine: Take one cosine over the entries of all groups together, while
            each group keeps its own norm in L_R. Deviation: a variant of overlapping
            authors' code (one cosine per matrix, norms per row).
    """

    alpha: float = 0.1
    lr: float = 0.01
    iterations: int = 300
    momentum: float = 0.0
    weight_decay: float = 0.0
    tolerance: float = 0.0
    orthogonality_weight: float | Tensor = 1.0
    shared_cosine: bool = False


@dataclass(frozen=True)
class Solution:
    """What a solver returns.

    Attributes:
        coefficients: c in delta = sum_k c[k] * tau_k, shape (groups, tasks), float64.
        losses: Objective before each step and after the last, summed over groups,
            columns [L, L_O, L_R], shape (steps + 1, 3).
    """

    coefficients: Tensor
    losses: Tensor


def disentangled_gram(gram: Tensor, coefficients: Tensor) -> Tensor:
    """Gram matrix of tau_i - delta.

    Args:
        gram: Inner products of the task vectors, shape (groups, tasks, tasks).
        coefficients: delta = sum_k c[k] tau_k, shape (groups, tasks).

    Returns:
        A G A^T with A = I - 1 c^T, shape of `gram`.
    """
    product = (gram @ coefficients[..., None])[..., 0]  # tau_i . delta
    square = (product * coefficients).sum(-1)  # |delta|^2
    return gram - product[..., None] - product[..., None, :] + square[..., None, None]


def delta_norm(gram: Tensor, coefficients: Tensor) -> Tensor:
    """|delta| of each group, shape (groups,)."""
    product = (gram @ coefficients[..., None])[..., 0] * coefficients
    return product.sum(-1).clamp_min(0).sqrt()


def objective(gram: Tensor, coefficients: Tensor, settings: Descent) -> Tensor:
    """L, L_O and L_R of each group, shape (groups, 3).

    L = w L_O + alpha L_R, L_O = mean over pairs i != j of |cos(tau_i - delta,
    tau_j - delta)|, L_R = |delta|. Pairs with a zero task vector count as orthogonal,
    and so does a single task. Deviation: the paper does not say; an expert that left a
    group unchanged has no direction to disentangle, and its -delta would give slopes of
    1/|delta|.
    """
    return _objective(gram, _point(gram, coefficients, settings), settings)


def _objective(gram: Tensor, point: _Point, settings: Descent) -> Tensor:
    weight = settings.orthogonality_weight / pairs_of(gram)
    orthogonality = weight * point.cosines.abs().sum((-2, -1))
    redundancy = point.delta_norm
    if settings.shared_cosine:  # one value, shared out so that the groups sum to it
        orthogonality = (orthogonality / len(gram)).expand(len(gram))
    loss = orthogonality + settings.alpha * redundancy
    return torch.stack([loss, orthogonality, redundancy], dim=-1)


def gradient(gram: Tensor, coefficients: Tensor, settings: Descent) -> Tensor:
    """Coefficients g of dL/d delta = sum_k g[k] tau_k, shape (groups, tasks).

    At delta = 0 the subgradient 0 of the norm is taken. At cos = 0, that of |cos|.
    """
    return _gradient(gram, _point(gram, coefficients, settings), settings)


def _gradient(gram: Tensor, point: _Point, settings: Descent) -> Tensor:
    coefficients, cosines, inverse_norms, norm = point
    signs = cosines.sign() * inverse_norms[..., :, None] * inverse_norms[..., None, :]
    # dL_O / d(tau_i - delta) = 2/pairs sum_j signs_ij d_j - |cos_ij| d_i / |d_i|^2
    weights = signs.sum(-2) - cosines.abs().sum(-1) * inverse_norms**2
    scale = 2 * gram.new_ones(1) * settings.orthogonality_weight / pairs_of(gram)
    weights = weights * scale.reshape(-1, 1)
    # delta enters every difference with -1, and d_k = tau_k - delta.
    result = weights.sum(-1, keepdim=True) * coefficients - weights
    norm = norm[..., None]
    unit = torch.where(norm > 0, coefficients / norm, torch.zeros_like(coefficients))
    return result + settings.alpha * unit


class _Point(NamedTuple):
    """A delta, and what the objective and its gradient need of it, group by group."""

    coefficients: Tensor
    cosines: Tensor  # off the diagonal
    inverse_norms: Tensor  # 1/|d_i|, 0 where tau_i = 0
    delta_norm: Tensor


def _point(gram: Tensor, coefficients: Tensor, settings: Descent) -> _Point:
    norm = delta_norm(gram, coefficients)
    rest = disentangled_gram(gram, coefficients)
    if settings.shared_cosine:
        gram, rest = gram.sum(0, keepdim=True), rest.sum(0, keepdim=True)
    norms = torch.diagonal(rest, dim1=-2, dim2=-1).clamp_min(0).sqrt()
    moved = (torch.diagonal(gram, dim1=-2, dim2=-1) > 0) & (norms > 0)
    inverse = torch.where(moved, 1 / norms, torch.zeros_like(norms))
    cosines = rest * inverse[..., :, None] * inverse[..., None, :]
    eye = torch.eye(gram.shape[-1], dtype=torch.bool, device=gram.device)
    return _Point(coefficients, cosines.masked_fill(eye, 0), inverse, norm)


def pairs_of(gram: Tensor) -> int:
    """Ordered pairs of different tasks; 1 for a single task."""
    tasks = gram.shape[-1]
    return max(tasks * (tasks - 1), 1)


def solve(
    gram: Tensor,
    settings: Descent,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Solution:
    """Descend on delta using inner products alone.

    Args:
        gram: Inner products of the task vectors, shape (groups, tasks, tasks); each
            group (the model, a tensor or a row) is its own problem. Converted to float64.
        settings: Step size, weights, number of steps.
        on_step: Called with the step number and the summed [L, L_O, L_R].

    Raises:
        ValueError: `gram` is not (groups, tasks, tasks) or holds NaN or Inf.

    Source: arXiv:2411.18729, in the span of the task vectors; the same iterates.
    """
    gram = _checked(gram)
    point = _point(gram, gram.new_zeros(gram.shape[:2]), settings)
    velocity = torch.zeros_like(point.coefficients)
    span = _onto_span(gram)
    losses = [_objective(gram, point, settings).sum(0)]
    for step in range(settings.iterations):
        grad = _gradient(gram, point, settings)
        grad = grad + settings.weight_decay * point.coefficients
        grad = (span @ grad[..., None])[..., 0]
        velocity = settings.momentum * velocity + grad
        moved = point.coefficients - settings.lr * velocity
        point = _point(gram, moved, settings)
        losses.append(_objective(gram, point, settings).sum(0))
        if on_step is not None:
            on_step(step, losses[-1])
        if _has_converged(losses, settings.tolerance):
            break
    return Solution(point.coefficients, torch.stack(losses))


def _checked(gram: Tensor) -> Tensor:
    if gram.dim() != 3 or gram.shape[-1] != gram.shape[-2]:
        raise ValueError(
            f"gram has shape {tuple(gram.shape)}, expected (groups, tasks, tasks)."
        )
    if not torch.isfinite(gram).all():
        raise ValueError("gram holds NaN or Inf: check the task vectors it came from.")
    return gram.double()


def _onto_span(gram: Tensor) -> Tensor:
    """Projection that drops from c what adds nothing to delta, shape of `gram`.

    With dependent task vectors (equal, opposite or unchanged experts) c is not unique:
    a part of it cancels in sum_k c[k] tau_k. Left alone, that part grows without bound
    and drowns the rest in rounding. The cut is where a direction is 1e-7 of the longest,
    which is what float32 rounds off anyway.
    """
    values, vectors = torch.linalg.eigh(gram)
    kept = values > 1e-14 * values[..., -1:]
    projection = (vectors * kept[..., None, :]) @ vectors.transpose(-1, -2)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.where(kept.all(-1)[..., None, None], eye, projection)


def _has_converged(losses: list[Tensor], tolerance: float) -> bool:
    if tolerance <= 0 or len(losses) <= 10:
        return False
    recent = torch.stack(losses[-11:])[:, 0]
    change = recent.diff().abs() / recent[:-1].abs().clamp_min(1e-300)
    return bool((change < tolerance).all())


def stationary_threshold(gram: Tensor, settings: Descent) -> Tensor:
    """|dL_O/d delta| at delta = 0, per group, shape (groups,).

    Where alpha is at least this, delta = 0 already minimises the objective locally and
    the descent only trembles around it: AWD changes nothing. The figure shrinks as
    1/|tau|, so an alpha tuned on one pool can be too large for another.
    """
    gram = _checked(gram)
    zero = gram.new_zeros(gram.shape[:2])
    return delta_norm(gram, gradient(gram, zero, settings))


def scale_free(gram: Tensor) -> Tensor:
    """Gram matrix of the task vectors divided by their mean norm, group by group.

    The coefficients of delta are the same in both scales, so a solution for this Gram
    matrix applies to the unscaled task vectors. Deviation: not in the paper; it makes
    alpha independent of how far the experts moved.
    """
    norms = torch.diagonal(gram, dim1=-2, dim2=-1).clamp_min(0).sqrt()
    mean = norms.mean(-1)
    scale = torch.where(mean > 0, mean, torch.ones_like(mean))
    return gram / (scale**2)[..., None, None]


def merged_coefficients(weights: Tensor, coefficients: Tensor) -> Tensor:
    """Fold the disentanglement into the coefficients of a linear merge.

    sum_t w[t] (tau_t - delta) = sum_k (w[k] - sum(w) c[k]) tau_k

    Args:
        weights: Merging coefficients per task (lambda in the paper), shape (..., tasks).
        coefficients: c, shape (..., tasks).

    Returns:
        Coefficients of the untouched task vectors, differentiable in both arguments.
    """
    return weights - weights.sum(-1, keepdim=True) * coefficients
