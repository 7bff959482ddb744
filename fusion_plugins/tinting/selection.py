"""How far teacher and merged model agree, and how many samples are learned from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adaptation import Batch, Callback, Losses, StepReport, TeacherLabels, Training
from ..common import get_logger
from ..learned.functional import pseudo_label_loss
from . import functional
from .options import TintingOptions

log = get_logger(__name__)

# A task that keeps no sample for this many of its batches in a row is worth a warning.
_PATIENCE = 20


class SelectionLog(Callback):
    """Logs kept share, agreement and confidence gap per task; warns of starved tasks.

    Args:
        log_every: Steps between log entries.
    """

    def __init__(self, log_every: int = 1):
        self.log_every = log_every
        self.kept: dict[str, float] = {}  # task -> share kept over the run
        self._seen: dict[str, list[float]] = {}
        self._starved: dict[str, int] = {}
        self._latest: dict[str, tuple[Tensor, Tensor]] = {}

    def note(
        self, task: str, logits: Tensor, labels: Tensor, confidence: Tensor
    ) -> None:
        """Remember a batch's agreement and confidence gap, still on the device."""
        with torch.no_grad():
            own, predicted = logits.softmax(-1).max(-1)
            agreement = (predicted == labels).float().mean()
            self._latest[task] = (agreement, (confidence - own).mean())

    def on_step(self, engine: Training, report: StepReport) -> None:
        for task, kept in report.kept.items():
            self._count(engine, task, kept, report.seen[task])
        if engine.step % self.log_every:
            return
        metrics = {}
        for task in report.kept if self._latest else ():  # nothing to agree on: none
            agreement, gap = self._latest[task]
            metrics[f"tinting/kept/{task}"] = report.kept[task] / report.seen[task]
            metrics[f"tinting/agreement/{task}"] = agreement.item()
            metrics[f"tinting/confidence_gap/{task}"] = gap.item()
        engine.predictor.fabric.log_dict(metrics, step=report.step)

    def _count(self, engine: Training, task: str, kept: float, seen: float) -> None:
        totals = self._seen.setdefault(task, [0.0, 0.0])
        totals[0] += kept
        totals[1] += seen
        self.kept[task] = totals[0] / max(totals[1], 1)
        self._starved[task] = 0 if kept else self._starved.get(task, 0) + 1
        if self._starved[task] == _PATIENCE:
            log.warning(
                "Task '%s' has kept no sample in its last %d batches (step %d): the merged"
                " model disagrees with the expert and is surer everywhere. Its layer is"
                " not learning; check the expert, or use sampling=none.",
                task,
                _PATIENCE,
                engine.step,
            )

    def state(self) -> dict:
        return {"seen": self._seen, "starved": self._starved, "kept": self.kept}

    def load_state(self, state: dict) -> None:
        self._seen, self._starved = state["seen"], state["starved"]
        self.kept = state["kept"]


@dataclass(frozen=True)
class PseudoLabelLoss:
    """Value and weight of each sample: its expert's label, and whether it counts.

    Attributes:
        options: Kind of labels, and of sampling.
        teachers: Task name -> labels of its samples.
        selection: Is told what was selected.
    """

    options: TintingOptions
    teachers: Mapping[str, TeacherLabels]
    selection: SelectionLog

    def __call__(self, task: str, logits: Tensor, batch: Batch) -> Losses:
        teacher = self.teachers[task]
        samples = batch.samples.to(logits.device)
        if teacher.outputs is not None:
            values = functional.output_loss(logits, teacher.outputs[samples])
            return Losses(values)
        labels, confidence = teacher.labels[samples], teacher.confidence[samples]
        target = labels
        if teacher.probabilities is not None:
            target = teacher.probabilities[samples]
        values = pseudo_label_loss(logits, target)
        selected = self._selected(logits, labels, confidence)
        self.selection.note(task, logits, labels, confidence)
        return Losses(values, selected.to(values))

    def _selected(self, logits: Tensor, labels: Tensor, confidence: Tensor) -> Tensor:
        if self.options.sampling == "confidence_gap":
            return functional.confidence_gap_selection(logits, labels, confidence)
        if self.options.sampling == "top_p":
            return functional.top_p_selection(confidence, self.options.top_p)
        return torch.ones_like(labels, dtype=torch.bool)
