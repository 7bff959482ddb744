"""What the engine reports and raises, and what watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .coefficients import Coefficients
from .data import Batch
from .predictor import Predictor
from .schedule import Schedule


@dataclass(frozen=True)
class Losses:
    """What a batch of one task costs.

    A draw's loss is the weighted mean of its samples' `values`, plus `of_mean` of the
    weighted mean of what is `averaged`. Both means are over all processes' samples.

    Attributes:
        values: Shape (samples,).
        weights: Shape (samples,); None weighs all the same.
        averaged: Shape (samples, n), such as predicted probabilities; None without a
            term of whole draws.
        of_mean: Means of shape (draws, n) -> term per draw, shape (draws,).
    """

    values: Tensor
    weights: Tensor | None = None
    averaged: Tensor | None = None
    of_mean: Callable[[Tensor], Tensor] | None = None

    @property
    def shares(self) -> Tensor:
        """The weights; one each where there are none."""
        return torch.ones_like(self.values) if self.weights is None else self.weights


# (task name, logits (samples, classes), batch) -> what the batch costs.
Loss = Callable[[str, Tensor, Batch], Losses]


class AdaptationDiverged(RuntimeError):
    """A loss or gradient became NaN or Inf; the message says where and what is saved."""


@dataclass
class StepReport:
    """What a step measured, on the host.

    Attributes:
        step: Counted from 0.
        loss, entropy, kept: Task name -> loss (weighted mean, summed over draws), mean
            entropy of the predictions in nats, and samples with a non-zero weight.
        seen: Task name -> samples, over all processes.
    """

    step: int
    loss: dict[str, float]
    entropy: dict[str, float]
    kept: dict[str, float]
    seen: dict[str, float]

    @property
    def samples(self) -> int:
        """Samples of all tasks and processes."""
        return int(sum(self.seen.values()))


class Training(Protocol):
    """A running engine, as callbacks see it."""

    predictor: Predictor
    coefficients: Coefficients
    schedule: Schedule
    optimizer: torch.optim.Optimizer
    step: int
    stopped: bool
    seconds: dict[str, float]

    @property
    def learned(self) -> list[Tensor]: ...

    def materialise(self) -> nn.Module: ...


class Callback:
    """Something that watches the loop; every hook is optional."""

    def on_start(self, engine: Training) -> None: ...

    def on_step(self, engine: Training, report: StepReport) -> None: ...

    def on_end(self, engine: Training) -> None: ...
