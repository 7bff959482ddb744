"""The experts' labels of their own tasks' samples, worked out once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .predictor import AdaptationTask, Predictor

_SAMPLES_AT_ONCE = 128


@dataclass(frozen=True)
class TeacherLabels:
    """What one expert says of its task's samples; rows are dataset indices.

    Attributes:
        labels: Most probable class, shape (samples,); -1 where no run looks.
        confidence: Its probability, shape (samples,).
        probabilities: Shape (samples, classes), only for soft labels.
        outputs: What the expert gives, shape (samples, ...), zeros where no run looks;
            only if outputs are what is learned from. Then there are no labels.
    """

    labels: Tensor
    confidence: Tensor
    probabilities: Tensor | None = None
    outputs: Tensor | None = None


@torch.no_grad()
def label_samples(
    experts: Predictor, soft: bool, outputs: bool = False
) -> dict[str, TeacherLabels]:
    """Label every sample a run will visit, one forward each, one expert at a time.

    The expert is the merge with a single coefficient 1, so no expert is ever loaded
    beside the merged model.

    Args:
        experts: The weights must still hold the untouched task vectors.
        soft: Keep all probabilities.
        outputs: Keep the experts' outputs as they are, instead of labels.

    Returns:
        Task name -> labels, on the weights' device.
    """
    teachers = {}
    for index, task in enumerate(experts.tasks):
        experts.weights.materialise_expert(index)
        label = _keep_outputs if outputs else _label_task
        teachers[task.name] = label(experts, index, soft)
    return teachers


def _label_task(experts: Predictor, index: int, soft: bool) -> TeacherLabels:
    device, count = experts.weights.device, experts.tasks[index].source.count
    labels = torch.full((count,), -1, device=device)
    confidence = torch.zeros(count, device=device)
    probabilities = None
    for where, logits in _predictions(experts, index):
        predicted = logits.softmax(-1)
        confidence[where], labels[where] = predicted.max(-1)
        if soft:
            if probabilities is None:
                probabilities = torch.zeros(count, predicted.shape[1], device=device)
            probabilities[where] = predicted
    return TeacherLabels(labels, confidence, probabilities)


def _keep_outputs(experts: Predictor, index: int, soft: bool) -> TeacherLabels:
    device, count = experts.weights.device, experts.tasks[index].source.count
    kept = None
    for where, outputs in _predictions(experts, index):
        if kept is None:
            kept = outputs.new_zeros(count, *outputs.shape[1:])
        kept[where] = outputs
    none = torch.full((count,), -1, device=device)
    return TeacherLabels(none, torch.zeros(count, device=device), outputs=kept)


def _predictions(experts: Predictor, index: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Places and predictions of all samples a run will visit, some at a time."""
    task, device = experts.tasks[index], experts.weights.device
    visited, shown = task.source.visited, experts.fabric.is_global_zero
    for samples, logits in predictions(
        task, visited, lambda inputs: experts.logits(index, inputs), shown
    ):
        yield torch.from_numpy(samples).to(device), logits


def predictions(
    task: AdaptationTask,
    samples: np.ndarray,
    predict: Callable[[Tensor], Tensor],
    shown: bool = False,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Samples of a task and what is predicted for them, some at a time.

    Args:
        task: The task.
        samples: Their dataset indices.
        predict: Model inputs -> predictions.
        shown: Show a progress bar.
    """
    # There are none in a run of 0 rounds.
    starts = range(0, len(samples), _SAMPLES_AT_ONCE)
    parts = [samples[at : at + _SAMPLES_AT_ONCE] for at in starts]
    for part in tqdm(parts, f"Label {task.name}", disable=not shown, leave=False):
        yield part, predict(task.source.inputs(part))
