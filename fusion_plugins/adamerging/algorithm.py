"""AdaMerging as a FusionBench method."""

from __future__ import annotations

import torch
from fusion_bench.mixins import auto_register_config
from torch import Tensor

from ..adaptation import Batch, JointSchedule
from ..common.logging import get_logger
from ..common.options import require_choice, require_integer, require_number
from ..learned.algorithm import LearnedMergeAlgorithm
from .functional import prediction_entropy

log = get_logger(__name__)

# Every setting in which the authors' script and FusionBench's port differ.
PRESETS = {
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


@auto_register_config
class AdaMergingAlgorithm(LearnedMergeAlgorithm):
    """Learn merging coefficients by minimising entropy on unlabelled samples.

    Args:
        preset: ``official`` (the authors' script) or ``fusion_bench`` (its port): gives
            the four settings below where they are None.
        clamp: Clamp coefficients to [0, 1] in the forward pass.
        steps: Optimiser steps.
        batches_per_task: Batches of each task per step; each batch's mean is added.
        entropy_eps: Added inside the logarithm of the entropy.
        **kwargs: See :class:`~fusion_plugins.learned.algorithm.LearnedMergeAlgorithm`.

    Raises:
        TypeError: An unknown option.
        ValueError: An option out of its range.

    Source: arXiv:2310.02575; with trim=0.2, its "++" variants.
    """

    label = "AdaMerging"

    def __init__(
        self,
        preset: str = "official",
        clamp: bool | None = None,
        steps: int | None = None,
        batches_per_task: int | None = None,
        entropy_eps: float | None = None,
        **kwargs,
    ):
        require_choice("preset", preset, tuple(PRESETS))
        given = {
            "clamp": clamp,
            "steps": steps,
            "batches_per_task": batches_per_task,
            "entropy_eps": entropy_eps,
        }
        changed = {name: value for name, value in given.items() if value is not None}
        self.protocol = PRESETS[preset] | changed
        require_choice("clamp", self.protocol["clamp"], (True, False))
        require_integer("steps", self.protocol["steps"])
        require_integer("batches_per_task", self.protocol["batches_per_task"], low=1)
        require_number("entropy_eps", self.protocol["entropy_eps"], high=1)
        super().__init__(**kwargs)
        note = f"preset '{preset}'" + (f" with {changed}" if changed else "")
        log.info("AdaMerging protocol: %s: %s", note, self.protocol)

    @property
    def clamps(self) -> bool:
        return self.protocol["clamp"]

    def schedule(self, tasks: int) -> JointSchedule:
        steps = 1 if self.is_debug_mode else self.protocol["steps"]
        return JointSchedule(tasks, steps, self.protocol["batches_per_task"])

    def check_model(self, adapter, module) -> None:
        """Entropy is defined for predictions of classes alone."""
        values = [task for task in adapter.tasks if not adapter.has_classes(task)]
        if values:
            raise ValueError(
                f"AdaMerging minimises the entropy of predicted classes, but {values}"
                " predict numbers. Leave these experts out of the pool, or use"
                " method=tinting method.labels=outputs."
            )

    def sample_loss(
        self, task: str, logits: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        places = logits.flatten(0, -2)  # of a dense task, several per sample
        entropy = prediction_entropy(places, self.protocol["entropy_eps"])
        entropy = entropy.view(len(logits), -1).mean(dim=1)
        return entropy, torch.ones_like(entropy)
