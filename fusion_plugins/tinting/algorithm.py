"""Model Tinting as a FusionBench method."""

from __future__ import annotations

from ..common import get_logger
from ..learned.algorithm import LearnedMergeAlgorithm
from .objective import TintingObjective
from .options import TintingOptions

log = get_logger(__name__)


class TintingAlgorithm(LearnedMergeAlgorithm):
    """Learn coefficients together with one small task-specific layer per task.

    Args:
        **options: Those of :class:`~fusion_plugins.tinting.options.TintingOptions`.

    Raises:
        TypeError: An unknown option.
        ValueError: An option out of its range, or nothing left to learn.

    Source: arXiv:2412.19098. Deviation: the teacher labels every sample once before the
    training instead of once per step; labels and losses are the same.
    """

    Options = TintingOptions
    options: TintingOptions

    def make_objective(self) -> TintingObjective:
        log.info("Model Tinting: %s", self.options.describe_preset())
        rounds = 1 if self.is_debug_mode else self.options.rounds
        return TintingObjective(self.options, rounds, self.profile)
