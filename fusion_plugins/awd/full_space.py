"""AWD's descent on delta itself: what the solver on inner products is held to."""

from __future__ import annotations

import torch
from torch import Tensor

from .functional import Descent, pairs_of


def solve_full_space(task_vectors: Tensor, settings: Descent) -> tuple[Tensor, Tensor]:
    """The same descent on delta itself, by autograd; O(tasks * entries) an iteration.

    Args:
        task_vectors: Shape (groups, tasks, entries), float64 for parity checks.
        settings: As for :func:`solve`; `tolerance` is ignored.

    Returns:
        delta, shape (groups, entries), and the losses as in :class:`Solution`.

    Source: arXiv:2411.18729, as written there.
    """
    delta = torch.zeros_like(task_vectors[:, 0]).requires_grad_()
    optimizer = torch.optim.SGD(
        [delta],
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    losses = []
    for _ in range(settings.iterations):
        loss, parts = _full_space_loss(task_vectors, delta, settings)
        losses.append(parts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    losses.append(_full_space_loss(task_vectors, delta, settings)[1])
    return delta.detach(), torch.stack(losses)


def _full_space_loss(
    task_vectors: Tensor, delta: Tensor, settings: Descent
) -> tuple[Tensor, Tensor]:
    rest = task_vectors - delta[:, None]
    if settings.shared_cosine:
        rest = rest.transpose(0, 1).flatten(1)[None]
        task_vectors = task_vectors.transpose(0, 1).flatten(1)[None]
    norms = rest.norm(dim=-1, keepdim=True)
    moved = task_vectors.any(dim=-1, keepdim=True) & (norms > 0)
    unit = moved * rest / torch.where(moved, norms, torch.ones_like(norms))
    cosines = torch.einsum("gic,gjc->gij", unit, unit)
    eye = torch.eye(cosines.shape[-1], dtype=torch.bool, device=cosines.device)
    sums = cosines.masked_fill(eye, 0).abs().sum((-2, -1)) / pairs_of(cosines)
    orthogonality = (settings.orthogonality_weight * sums).sum()
    redundancy = delta.norm(dim=-1).sum()  # torch takes the subgradient 0 at 0
    loss = orthogonality + settings.alpha * redundancy
    return loss, torch.stack([loss, orthogonality, redundancy]).detach()
