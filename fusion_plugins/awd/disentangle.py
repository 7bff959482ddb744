"""AWD over a whole model: Gram matrices, one descent per group, coefficients per tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..common import get_logger
from ..task_vectors import GramMatrices, TaskVectors, cosine_matrix, gram_matrices
from . import functional
from .functional import Descent, Solution

log = get_logger(__name__)

_GROUPS = 2**13  # descended on at once: their matrices stay in cache
_LONGEST = 1e4  # times the task vectors that share delta: beyond it has diverged


@dataclass(frozen=True)
class Disentanglement:
    """The redundant vector of a pool, as coefficients of its task vectors.

    Attributes:
        tasks: Task names, the order of every tasks dimension.
        gram: Inner products of the task vectors over the entries that took part.
        solution: c per group, and the losses.
        thresholds: alpha from which on a group stays at delta = 0, shape (groups,).
        settings: The descent's settings.
    """

    tasks: tuple[str, ...]
    gram: GramMatrices
    solution: Solution
    thresholds: Tensor
    settings: Descent

    def delta_coefficients(self, key: str) -> Tensor:
        """c of one tensor, shape (tasks,) or (tasks, rows); 0 where it took no part."""
        if key not in self.gram.keys:
            return self.solution.coefficients.new_zeros(len(self.tasks))
        values = self.solution.coefficients[self.gram.group_slice(key)]
        return values.t() if self.gram.granularity == "row" else values[0]

    def fold(self, key: str, weights: Tensor) -> Tensor:
        """Coefficients of the untouched task vectors for merging tau_t - delta.

        Args:
            key: Tensor name.
            weights: Merging coefficients of the disentangled vectors, shape (tasks,).

        Returns:
            Shape (tasks,) or (tasks, rows), differentiable in `weights`.
        """
        coefficients = self.delta_coefficients(key).to(weights)
        if coefficients.dim() == 1:
            return functional.merged_coefficients(weights, coefficients)
        return functional.merged_coefficients(weights[None], coefficients.t()).t()

    @property
    def by_row(self) -> bool:
        """Whether delta's coefficients differ between the rows of a tensor."""
        return self.gram.granularity == "row"

    def mixing(self, keys: Sequence[str]) -> Tensor:
        """The linear map from coefficients of tau_t - delta to coefficients of tau_t.

        Args:
            keys: Tensor names, in the order of the coefficients' columns.

        Returns:
            Shape (len(keys), tasks, tasks): I - c 1^T for each tensor.

        Raises:
            ValueError: The granularity is ``row``: there is no one map per tensor.
        """
        if self.by_row:
            raise ValueError(
                "With granularity 'row' delta differs from row to row: use subtract_()."
            )
        eye = torch.eye(len(self.tasks), dtype=torch.float64, device="cpu")
        c = torch.stack([self.delta_coefficients(key) for key in keys])
        return eye - c[:, :, None]

    def subtract_(self, key: str, stack: Tensor) -> None:
        """Turn task vectors of one tensor into disentangled ones, in place.

        Args:
            key: Tensor name.
            stack: Shape (tasks, entries).
        """
        coefficients = self.delta_coefficients(key).to(stack)
        if coefficients.dim() == 1:
            stack.sub_(coefficients @ stack)
            return
        rows = stack.view(len(self.tasks), coefficients.shape[1], -1)
        rows.sub_(torch.einsum("tr,trc->rc", coefficients, rows.clone()))

    def cosines(self) -> tuple[Tensor, Tensor]:
        """Cosines over all entries that took part, before and after, (tasks, tasks)."""
        after = functional.disentangled_gram(
            self.gram.values, self.solution.coefficients
        )
        return cosine_matrix(self.gram.total()), cosine_matrix(after.sum(dim=0))

    def delta_norm(self) -> float:
        """Norm of delta over the whole model, in the task vectors' scale."""
        norms = functional.delta_norm(self.gram.values, self.solution.coefficients)
        return norms.norm().item()

    def task_vector_norms(self) -> Tensor:
        """Norms of the task vectors over the entries that took part, shape (tasks,)."""
        return self.gram.total().diagonal().clamp_min(0).sqrt()


def disentangle(
    task_vectors: TaskVectors,
    settings: Descent,
    *,
    granularity: str = "model",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    scale_free: bool = False,
    progress: bool = False,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Disentanglement:
    """Find the redundant vector of a pool in one walk over its checkpoints.

    Args:
        task_vectors: Base and experts.
        settings: Step size, weights, number of steps.
        granularity: One delta for the ``model`` (the paper's cosine over the flattened
            vector), or one problem per ``tensor``, or per matrix with the cosine and
            norm of each ``row``.
        include: Shell-style patterns of the tensors that take part. The others keep
            delta = 0; they are still merged.
        exclude: Patterns of tensors that do not.
        scale_free: Divide task vectors by their mean norm while solving.
        progress: Show a progress bar.
        on_step: Called after each step with its number and the summed [L, L_O, L_R].

    Raises:
        ValueError: A pattern matches nothing, unknown granularity, NaN or Inf values.

    Source: arXiv:2411.18729. Deviation: the paper leaves the granularity open; with
    ``row`` each row's mean absolute cosine is divided by the number of rows of its
    matrix, as in code by overlapping authors.
    """
    keys = task_vectors.select(include, exclude)
    gram = gram_matrices(task_vectors, granularity, keys, progress)
    return disentangle_gram(
        task_vectors.tasks, gram, settings, scale_free=scale_free, on_step=on_step
    )


def disentangle_gram(
    tasks: Sequence[str],
    gram: GramMatrices,
    settings: Descent,
    *,
    scale_free: bool = False,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Disentanglement:
    """:func:`disentangle` from inner products that are known already.

    Args:
        tasks: Task names, the order of the tasks dimensions of `gram`.
        gram: Inner products of the task vectors.
        settings: As for :func:`disentangle`, and so the rest.
        scale_free: Likewise.
        on_step: Likewise.
    """
    values = functional.scale_free(gram.values) if scale_free else gram.values
    parts, thresholds = [], []
    for part, weight in _parts(gram, values):
        weight = settings.orthogonality_weight * weight
        own = replace(settings, orthogonality_weight=weight)
        parts.append(functional.solve(part, own, on_step))
        thresholds.append(functional.stationary_threshold(part, own))
    solution = Solution(
        torch.cat([part.coefficients for part in parts]),
        _summed([part.losses for part in parts]),
    )
    alphas = torch.cat(thresholds)
    result = Disentanglement(tuple(tasks), gram, solution, alphas, settings)
    # Also where it is NaN.
    if not result.delta_norm() <= _LONGEST * result.task_vector_norms().sum().item():
        raise ValueError(
            f"AWD diverged: lr={settings.lr:g} is too long a step for granularity"
            f" '{gram.granularity}'. Use scale_free=true or a smaller lr."
        )
    _warn_if_stationary(result, scale_free)
    _warn_if_risen(result)
    return result


def _parts(gram: GramMatrices, values: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Groups solved together, with the weight of each one's cosine term."""
    weights = values.new_ones(len(values))
    if gram.granularity == "row":
        rows = torch.tensor(gram.groups, device=values.device)
        weights = (1 / rows.to(values)).repeat_interleave(rows)
    yield from zip(values.split(_GROUPS), weights.split(_GROUPS), strict=True)


def _summed(losses: list[Tensor]) -> Tensor:
    """Sum curves of different length; a part that stopped early stays at its end."""
    length = max(len(curve) for curve in losses)
    padded = [
        torch.cat([curve, curve[-1:].expand(length - len(curve), -1)])
        for curve in losses
    ]
    return torch.stack(padded).sum(dim=0)


def _warn_if_stationary(result: Disentanglement, scale_free: bool) -> None:
    stuck = result.thresholds <= result.settings.alpha
    if len(result.tasks) < 2 or not stuck.any():
        return
    advice = "a smaller alpha" if scale_free else "a smaller alpha, or scale_free=true"
    log.warning(
        "AWD changes (almost) nothing in %d of %d group(s): alpha=%g is at least the"
        " slope of the cosine term at delta=0, which is %.3g at most. The slope shrinks"
        " as task vectors grow (here their norms are %.3g to %.3g). Use %s.",
        int(stuck.sum()),
        len(stuck),
        result.settings.alpha,
        result.thresholds.max().item(),
        result.task_vector_norms().min().item(),
        result.task_vector_norms().max().item(),
        advice,
    )


def _warn_if_risen(result: Disentanglement) -> None:
    losses = result.solution.losses[:, 0].tolist()
    if len(losses) < 2 or losses[-1] <= 1.2 * losses[0]:  # a little is trembling
        return
    log.warning(
        "AWD's loss rose from %.4g to %.4g: the steps of lr=%g are too long for some of"
        " the %d group(s) of granularity '%s', and what was removed is not what the task"
        " vectors share. Use scale_free=true, a smaller lr, or granularity=model.",
        losses[0],
        losses[-1],
        result.settings.lr,
        len(result.thresholds),
        result.gram.granularity,
    )
