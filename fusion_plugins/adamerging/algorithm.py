"""AdaMerging as a FusionBench method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..adaptation import (
    Batch,
    Coefficients,
    JointSchedule,
    MergedWeights,
    Predictor,
    SampleOrder,
    Schedule,
)
from ..common.logging import get_logger
from ..common.options import choice, flag, integer, number
from ..learned.algorithm import LearnedMergeAlgorithm
from ..learned.objective import Learner, Start
from ..learned.options import LearnedOptions
from ..pools.adapter import PoolAdapter
from .functional import prediction_entropy

log = get_logger(__name__)

# Every setting in which the authors' script and FusionBench's port differ.
PRESETS: dict[str, dict[str, Any]] = {
    "official": {
        "clamp": True,
        "steps": 500,
        "batches_per_task": 2,
        "entropy_eps": 0.0,
    },
    "fusion_bench": {
        "clamp": False,
        "steps": 1000,
        "batches_per_task": 1,
        "entropy_eps": 1e-8,
    },
}


@dataclass(frozen=True, kw_only=True)
class AdaMergingOptions(LearnedOptions):
    """Options of AdaMerging: those of learned merges, and these.

    Args:
        preset: ``official`` (the authors' script) or ``fusion_bench`` (its port): gives
            the four settings below where they are None.
        clamp: Clamp coefficients to [0, 1] in the forward pass.
        steps: Optimiser steps.
        batches_per_task: Batches of each task per step; each batch's mean is added.
        entropy_eps: Added inside the logarithm of the entropy.
    """

    preset: str = choice("official", PRESETS)
    clamp: bool | None = flag(None)
    steps: int | None = integer(None)
    batches_per_task: int | None = integer(None, low=1)
    entropy_eps: float | None = number(None, high=1)

    @property
    def changed(self) -> dict[str, Any]:
        """The settings that are not left to the preset."""
        given = {name: getattr(self, name) for name in PRESETS[self.preset]}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def protocol(self) -> dict[str, Any]:
        """The preset with what was changed of it."""
        return PRESETS[self.preset] | self.changed


@dataclass(frozen=True)
class EntropyObjective:
    """The entropy of the merged model's predictions on unlabelled samples.

    Attributes:
        protocol: Clamp, steps, batches per task, and epsilon of the entropy.
    """

    protocol: dict[str, Any]
    label: str = field(default="AdaMerging", init=False)

    @property
    def clamps(self) -> bool:
        return self.protocol["clamp"]

    def check(self, adapter: PoolAdapter, module: nn.Module) -> None:
        """Entropy is defined for predictions of classes alone."""
        values = [task for task in adapter.tasks if not adapter.has_classes(task)]
        if values:
            raise ValueError(
                f"AdaMerging minimises the entropy of predicted classes, but {values}"
                " predict numbers. Leave these experts out of the pool, or use"
                " method=tinting method.labels=outputs."
            )

    def schedule(self, tasks: int, order: SampleOrder) -> Schedule:
        protocol = self.protocol
        return JointSchedule(tasks, protocol["steps"], protocol["batches_per_task"])

    def prepare(self, experts: Predictor, adapter: PoolAdapter) -> Start:
        """Nothing of the experts is needed."""

        def start(weights: MergedWeights, coefficients: Coefficients) -> Learner:
            groups = [{"params": list(coefficients.parameters())}]
            return Learner(experts.tasks, self.loss, groups, lambda: weights.module)

        return start

    def loss(self, task: str, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Entropy and weight of each sample."""
        places = logits.flatten(0, -2)  # of a dense task, several per sample
        entropy = prediction_entropy(places, self.protocol["entropy_eps"])
        entropy = entropy.view(len(logits), -1).mean(dim=1)
        return entropy, torch.ones_like(entropy)


class AdaMergingAlgorithm(LearnedMergeAlgorithm):
    """Learn merging coefficients by minimising entropy on unlabelled samples.

    Args:
        **options: Those of :class:`AdaMergingOptions`.

    Raises:
        TypeError: An unknown option.
        ValueError: An option out of its range.

    Source: arXiv:2310.02575; with trim=0.2, its "++" variants.
    """

    Options = AdaMergingOptions
    options: AdaMergingOptions

    def objective(self) -> EntropyObjective:
        options, protocol = self.options, self.options.protocol
        note = f" with {options.changed}" if options.changed else ""
        log.info("AdaMerging: preset '%s'%s: %s", options.preset, note, protocol)
        if self.is_debug_mode:
            protocol = protocol | {"steps": 1}
        return EntropyObjective(protocol)
