"""What a method gives to a learned merge: an objective, and the learner it prepares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ..adaptation import (
    AdaptationTask,
    Callback,
    Coefficients,
    Loss,
    MergedWeights,
    Predictor,
    SampleOrder,
    Schedule,
)
from ..pools.adapter import PoolAdapter


@dataclass
class Learner:
    """What the engine trains, once the experts have been read.

    Attributes:
        tasks: With the layers that are learned.
        loss: What a batch costs.
        groups: The optimiser's parameter groups.
        result: The merged model, to be called after the training.
        callbacks: Of the method's own; those with state are in checkpoints.
        optimizer: Over the groups, with the run's learning rate.
    """

    tasks: Sequence[AdaptationTask]
    loss: Loss
    groups: list[dict[str, Any]]
    result: Callable[[], nn.Module]
    callbacks: Sequence[Callback] = ()
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam


# Makes the learner, once the weights hold what is merged and not the experts any more.
Start = Callable[[MergedWeights, Coefficients], Learner]


class Objective(Protocol):
    """One way to learn coefficients."""

    @property
    def label(self) -> str:
        """The method's name, for people."""

    @property
    def clamps(self) -> bool:
        """Whether coefficients are clamped to [0, 1] in the forward pass."""

    @property
    def protocol(self) -> dict[str, Any] | None:
        """Settings that decide the result and are no options, if any."""

    def check(self, adapter: PoolAdapter, module: nn.Module) -> None:
        """Raise ValueError if the pool does not fit; called before anything slow."""

    def schedule(self, tasks: int, order: SampleOrder) -> Schedule:
        """Steps, and what each of them sees."""

    def prepare(self, experts: Predictor, adapter: PoolAdapter) -> Start:
        """Take from the experts what the training needs.

        Args:
            experts: The weights hold the untouched task vectors: the merge with a single
                coefficient 1 is that task's expert.
            adapter: Of the pool.
        """
