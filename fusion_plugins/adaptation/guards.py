"""Watching for collapse: does the merged model still agree with the experts?

Entropy falls both when a model learns and when it collapses onto one class. What tells
them apart without labels is each expert's own prediction on its own task's samples.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..common import get_logger
from .interfaces import Callback, StepReport, Training
from .predictor import Predictor

log = get_logger(__name__)


@dataclass(frozen=True)
class Health:
    """A task's state on its monitored samples.

    Attributes:
        agreement: Share of samples where merged model and expert predict the same.
        entropy: Mean entropy of the predictions, nats.
        top_share, expert_top_share: Share of the most predicted class.
        histogram: Predictions per class.
    """

    agreement: float
    entropy: float
    top_share: float
    expert_top_share: float
    histogram: list[int]


@torch.no_grad()
def expert_predictions(predictor: Predictor, samples: int) -> dict[str, Tensor]:
    """Each expert's predicted classes on its own task: the merge with a single 1.

    Args:
        predictor: Its weights still hold the untouched task vectors.
        samples: Monitored samples per task.
    """
    found = {}
    for index, task in enumerate(predictor.tasks):
        predictor.weights.materialise_expert(index)
        found[task.name] = _monitored_logits(predictor, index, samples).argmax(-1)
    return found


def _monitored_logits(predictor: Predictor, index: int, samples: int) -> Tensor:
    source = predictor.tasks[index].source
    return predictor.logits(index, source.monitored(samples))


def _health(logits: Tensor, expert: Tensor) -> Health:
    predicted, classes = logits.argmax(-1), logits.shape[-1]
    log_p = logits.log_softmax(-1)
    return Health(
        agreement=(predicted == expert).float().mean().item(),
        entropy=-(log_p.exp() * log_p).sum(-1).mean().item(),
        top_share=(predicted.bincount().max() / len(predicted)).item(),
        expert_top_share=(expert.bincount().max() / len(expert)).item(),
        histogram=predicted.bincount(minlength=classes).tolist(),
    )


class CollapseGuard(Callback):
    """Compares predictions with the experts' every few steps.

    Args:
        experts: Task name -> its expert's predictions on the monitored samples, as from
            :func:`expert_predictions`.
        every: Steps between checks; the first is before step 0.
        samples: Monitored samples per task.
        drop: Fall of the mean agreement below its best so far that counts as collapse.
        excess: A class predicted this share of the time more than the expert's most
            predicted class, and more than at the start, counts as collapse of that task
            once the task's own agreement has fallen by `drop`.
        stop: Stop at a collapse, and end with the state of the best mean agreement.
        patience: With `stop`, checks without a better agreement that end the run; 0: none.
    """

    def __init__(
        self,
        experts: Mapping[str, Tensor],
        every: int = 50,
        samples: int = 64,
        drop: float = 0.05,
        excess: float = 0.3,
        stop: bool = False,
        patience: int = 0,
    ):
        self.every, self.samples, self.drop = every, samples, drop
        self.excess, self.stop, self.patience = excess, stop, patience
        self.history: list[dict] = []
        self.best = {"step": 0, "agreement": -1.0}
        self.warned = False
        self._experts = experts
        self._best_state: list[Tensor] = []

    def on_start(self, engine: Training) -> None:
        if not self.history:
            self._check(engine)

    def on_step(self, engine: Training, report: StepReport) -> None:
        if engine.step % self.every == 0 or engine.step == engine.schedule.steps:
            self._check(engine)

    def on_end(self, engine: Training) -> None:
        if self.stop and not engine.stopped and self.best["step"] < engine.step:
            self.go_back(engine, f"The run ended at step {engine.step}")

    @torch.no_grad()
    def _check(self, engine: Training) -> None:
        engine.materialise()
        health = {
            task.name: _health(
                _monitored_logits(engine.predictor, i, self.samples),
                self._experts[task.name],
            )
            for i, task in enumerate(engine.predictor.tasks)
        }
        mean = sum(h.agreement for h in health.values()) / len(health)
        tasks = {name: asdict(h) for name, h in health.items()}
        entry = {"step": engine.step, "agreement": mean, "tasks": tasks}
        self.history.append(entry)
        metrics = {f"guard/agreement/{n}": h.agreement for n, h in health.items()}
        metrics["guard/agreement"] = mean
        engine.predictor.fabric.log_dict(metrics, step=engine.step)
        if mean > self.best["agreement"]:
            self.best = {"step": engine.step, "agreement": mean}
            self._best_state = [p.detach().clone() for p in engine.learned]
        self._judge(engine, health, mean)

    def _judge(self, engine: Training, health: dict[str, Health], mean: float) -> None:
        narrow = [name for name in health if self._has_narrowed(name)]
        fallen = self.best["agreement"] - mean > self.drop
        if (fallen or narrow) and not self.warned:
            self.warned = True
            log.warning(self._message(engine, health, mean, narrow))
        if self.stop and (fallen or narrow):
            self.go_back(engine, f"Stopped at step {engine.step}")
        elif self.stop and self._waits_in_vain():
            self.go_back(
                engine, f"No gain in {self.patience} checks, at step {engine.step}"
            )

    def _waits_in_vain(self) -> bool:
        later = [e for e in self.history if e["step"] > self.best["step"]]
        return 0 < self.patience <= len(later)

    def _has_narrowed(self, name: str) -> bool:
        """Whether a task drifts to one class, away from its expert."""
        past = [entry["tasks"][name] for entry in self.history]
        now = past[-1]
        expert = now["expert_top_share"]
        limit = max(min(expert + self.excess, 0.95), expert, past[0]["top_share"])
        best = max(entry["agreement"] for entry in past)
        return now["top_share"] > limit and best - now["agreement"] > self.drop

    def _message(
        self,
        engine: Training,
        health: dict[str, Health],
        mean: float,
        narrow: list[str],
    ) -> str:
        worst = min(health, key=lambda name: health[name].agreement)
        best = self.best
        down = f", down from {best['agreement']:.1%} at step {best['step']}"
        text = (
            f"Entropy collapse at step {engine.step}: predictions agree with the experts'"
            f" on {mean:.1%} of the monitored samples"
            f"{down if mean < best['agreement'] else ''} (worst: '{worst}',"
            f" {health[worst].agreement:.1%})."
        )
        if narrow:
            text += f" Task(s) {narrow} are predicted as nearly one class."
        if not self.stop:
            text += (
                " Low entropy is not accuracy when experts are weak: set"
                " stop_on_collapse=true to keep the best state, or lower lr and steps."
            )
        return text

    def go_back(self, engine: Training, why: str) -> None:
        """Restore the best state seen and end the run."""
        with torch.no_grad():
            for parameter, best in zip(engine.learned, self._best_state, strict=True):
                parameter.copy_(best)
        engine.stopped = True
        log.log(
            logging.WARNING if self.warned else logging.INFO,
            "%s; the state of step %d is returned, which agrees best with the experts"
            " (%.1f%%). stop_on_collapse=false returns the last one.",
            why,
            self.best["step"],
            100 * self.best["agreement"],
        )

    def state(self) -> dict:
        return {"history": self.history, "best": self.best, "warned": self.warned}

    def load_state(self, state: dict) -> None:
        self.history, self.best = state["history"], state["best"]
        self.warned = state["warned"]

    def tensors(self) -> dict[str, Tensor]:
        return {str(index): tensor for index, tensor in enumerate(self._best_state)}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        self._best_state = [tensors[str(index)] for index in range(len(tensors))]
