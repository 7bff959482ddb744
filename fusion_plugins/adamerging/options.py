"""The options of AdaMerging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..common.options import choice, flag, integer, like, number
from ..learned.options import AUTO, LearnedOptions, PresetOptions

OBJECTIVES = ("entropy", "information_maximisation", "expert_labels")

# What the authors' script and FusionBench's port have in common.
_PUBLISHED = {
    "objective": "entropy",
    "lr": 1e-3,
    "stop_on_collapse": False,
    "guard_patience": 0,
    "init": 0.3,
}
_DEFAULT = {
    "clamp": True,
    "steps": 500,
    "batches_per_task": 2,
    "entropy_eps": 0.0,
    "objective": "expert_labels",
    "lr": 1e-2,
    "stop_on_collapse": True,
    "guard_patience": 3,
    "init": AUTO,
    "guard_every": 50,
    "guard_samples": 64,
}
_FAST = {
    "steps": 100,
    "lr": 2e-2,
    "guard_every": 10,
    "guard_patience": 5,
    "guard_samples": 256,  # of 11 states, 64 samples may take a worse one for the best
}


@dataclass(frozen=True, kw_only=True)
class AdaMergingOptions(PresetOptions):
    """Options of AdaMerging: those of learned merges, and these.

    Args:
        preset: ``default``; ``fast`` (a fifth of its steps); ``official`` (the authors'
            script) or ``fusion_bench`` (its port): gives the settings below, `init`, `lr`
            and those of the guard where they are None.
        objective: ``entropy`` of the predictions; ``information_maximisation``: minus
            the entropy of each batch's mean prediction as well; ``expert_labels``:
            cross-entropy to the experts' hard labels.
        marginal_weight: Of the mean prediction's entropy in information_maximisation.
        clamp: Clamp coefficients to [0, 1] in the forward pass.
        steps: Optimiser steps.
        batches_per_task: Batches of each task per step; each batch's mean is added.
        entropy_eps: Added inside the logarithm of the entropy.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "default": _DEFAULT,
        "fast": _DEFAULT | _FAST,
        "official": _DEFAULT | _PUBLISHED,
        "fusion_bench": _DEFAULT
        | _PUBLISHED
        | {"clamp": False, "steps": 1000, "batches_per_task": 1, "entropy_eps": 1e-8},
    }

    preset: str = choice("default", PRESETS)
    objective: str = choice(None, (None, *OBJECTIVES))
    marginal_weight: float = number(1.0)
    clamp: bool = flag(None)
    steps: int = integer(None)
    batches_per_task: int = integer(None, low=1)
    entropy_eps: float = number(None, high=1)
    lr: float = like(LearnedOptions, "lr", None)
    stop_on_collapse: bool = flag(None)
    init: float | str = like(LearnedOptions, "init", None)
    guard_every: int = integer(None)
    guard_samples: int = integer(None, low=1)
    guard_patience: int = integer(None)

    @property
    def protocol(self) -> dict[str, Any]:
        """What the authors' script and FusionBench's port set differently."""
        names = ("clamp", "steps", "batches_per_task", "entropy_eps")
        return {name: getattr(self, name) for name in names}
