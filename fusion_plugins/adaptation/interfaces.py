"""What the engine is given, reports and raises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from .data import Batch, BatchSource

if TYPE_CHECKING:
    from .engine import Engine


class AdaptationDiverged(RuntimeError):
    """A loss or gradient became NaN or Inf; the message says where and what is saved."""


@dataclass(frozen=True)
class AdaptationTask:
    """One task as the engine sees it.

    Attributes:
        name: Task name.
        source: Its unlabelled batches.
        head: Features -> logits, shape (samples, classes).
        parameters: The task's own learned parameters, in its head or elsewhere.
        activate: Puts the task's own layers in place before its forward. Tasks that have
            it never share a forward with others.
    """

    name: str
    source: BatchSource
    head: Callable[[Tensor], Tensor]
    parameters: tuple[nn.Parameter, ...] = ()
    activate: Callable[[], None] | None = None


# (task name, logits (samples, classes), batch) -> value and weight of each sample.
SampleLoss = Callable[[str, Tensor, Batch], tuple[Tensor, Tensor]]


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


class Callback:
    """Something that watches the loop; every hook is optional."""

    def on_start(self, engine: Engine) -> None: ...

    def on_step(self, engine: Engine, report: StepReport) -> None: ...

    def on_end(self, engine: Engine) -> None: ...
