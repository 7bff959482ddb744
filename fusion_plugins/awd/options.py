"""The options of AWD."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..common.options import Options, choice, flag, integer, number, option, patterns
from ..task_vectors import TaskVectors
from ..task_vectors.gram import GRANULARITIES
from .disentangle import Disentanglement, disentangle
from .functional import Descent


@dataclass(frozen=True, kw_only=True)
class DisentangleOptions(Options):
    """How the redundant vector is found.

    Args:
        alpha: Weight of |delta| in the objective. Suits task vectors of norm 2 to 3.
        lr: Step size of the descent (beta in the paper).
        iterations: Steps of the descent.
        momentum, weight_decay: As in SGD; the paper uses neither.
        tolerance: Stop early once the loss changes less than this, relatively.
        granularity: ``model``, ``tensor`` or ``row``.
        include, exclude: Shell-style patterns of the tensors that are disentangled.
        scale_free: Make alpha independent of the task vectors' norms; not in the paper.
    """

    alpha: float = number(Descent.alpha)
    lr: float = number(Descent.lr, open_low=True)
    iterations: int = integer(Descent.iterations)
    momentum: float = number(Descent.momentum, high=1)
    weight_decay: float = number(Descent.weight_decay)
    tolerance: float = number(Descent.tolerance)
    granularity: str = choice("model", GRANULARITIES)
    include: tuple[str, ...] = patterns()
    exclude: tuple[str, ...] = patterns()
    scale_free: bool = flag(False)

    @property
    def descent(self) -> Descent:
        """The settings of the descent alone."""
        return Descent(
            alpha=self.alpha,
            lr=self.lr,
            iterations=self.iterations,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            tolerance=self.tolerance,
        )

    def find(
        self,
        task_vectors: TaskVectors,
        apart: Sequence[str] = (),
        progress: bool = False,
    ) -> Disentanglement:
        """The redundant vector by these options; see :func:`.disentangle.disentangle`.

        Args:
            task_vectors: Base and experts.
            apart: Patterns of tensors that no method merges.
            progress: Show a progress bar.
        """
        return disentangle(
            task_vectors,
            self.descent,
            granularity=self.granularity,
            include=self.include,
            exclude=(*self.exclude, *apart),
            scale_free=self.scale_free,
            progress=progress,
        )


def base_method() -> Any:
    """The option of the method that merges; see :mod:`.base_method`."""

    def check(name: str, value: Any) -> Any:
        if value is None or callable(getattr(value, "run", None)):
            return value
        if isinstance(value, dict) and ("_target_" in value or "name" in value):
            return value
        raise TypeError(
            f"{name} is a {type(value).__name__}; expected a FusionBench method config"
            " (a mapping with _target_) or an algorithm object."
        )

    return option(None, check)
