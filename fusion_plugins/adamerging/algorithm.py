"""AdaMerging as a FusionBench method."""

from __future__ import annotations

from ..common import get_logger
from ..learned.algorithm import LearnedMergeAlgorithm
from .objective import AdaMergingObjective
from .options import AdaMergingOptions

log = get_logger(__name__)


class AdaMergingAlgorithm(LearnedMergeAlgorithm):
    """Learn merging coefficients at test time on unlabelled samples.

    Args:
        **options: Those of :class:`AdaMergingOptions`.

    Raises:
        TypeError: An unknown option.
        ValueError: An option out of its range.

    Source: arXiv:2310.02575; with trim=0.2, its "++" variants. Deviation: the default
    objective is the experts' labels; preset=official is the paper's.
    """

    Options = AdaMergingOptions
    options: AdaMergingOptions

    def make_objective(self) -> AdaMergingObjective:
        options, protocol = self.options, self.options.protocol
        log.info("AdaMerging: %s", options.describe_preset())
        if self.is_debug_mode:
            protocol = protocol | {"steps": 1}
        return AdaMergingObjective(protocol, options.objective, options.marginal_weight)
