"""Tasks and their predictions: all that labelling and watching samples needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning import Fabric
from torch import Tensor, nn

from .data import BatchSource
from .weights import MergedWeights


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


@dataclass(frozen=True)
class Predictor:
    """The merged module with its tasks' heads.

    Attributes:
        weights: The module and its task vectors.
        tasks: In the order of the task vectors.
        forward: (module, inputs) -> features, shape (samples, ...).
        fabric: Precision, devices and processes.
    """

    weights: MergedWeights
    tasks: Sequence[AdaptationTask]
    forward: Callable[[nn.Module, Tensor], Tensor]
    fabric: Fabric

    def activate(self, task: int) -> None:
        """Put a task's own layers in place, if it has any."""
        activate = self.tasks[task].activate
        if activate is not None:
            activate()

    def logits(self, task: int, inputs: Tensor) -> Tensor:
        """Predictions for one task with the weights as they are, (samples, classes)."""
        self.activate(task)
        with self.fabric.autocast():
            features = self.forward(self.weights.module, inputs)
            return self.tasks[task].head(features).float()
