"""The experts' labels of their own tasks' samples, worked out once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fusion_plugins.adaptation import Engine

_SAMPLES_AT_ONCE = 128


@dataclass(frozen=True)
class TeacherLabels:
    """What one expert says of its task's samples; rows are dataset indices.

    Attributes:
        labels: Most probable class, shape (samples,); -1 where no run looks.
        confidence: Its probability, shape (samples,).
        probabilities: Shape (samples, classes), only for soft labels.
    """

    labels: Tensor
    confidence: Tensor
    probabilities: Tensor | None = None


@torch.no_grad()
def label_samples(engine: Engine, soft: bool) -> dict[str, TeacherLabels]:
    """Label every sample a run will visit, one forward each, one expert at a time.

    The expert is the merge with a single coefficient 1, so no expert is ever loaded
    beside the merged model.

    Args:
        engine: Its weights must still hold the untouched task vectors.
        soft: Keep all probabilities.

    Returns:
        Task name -> labels, on the engine's device.
    """
    teachers = {}
    for index, task in enumerate(engine.tasks):
        engine.weights.materialise_expert(index)
        teachers[task.name] = _label_task(engine, index, soft)
    engine.materialise()
    return teachers


def _label_task(engine: Engine, index: int, soft: bool) -> TeacherLabels:
    task, device = engine.tasks[index], engine.weights.device
    source = task.source
    count = len(source.dataset)
    labels = torch.full((count,), -1, device=device)
    confidence = torch.zeros(count, device=device)
    probabilities = None
    starts = range(
        0, len(source.visited), _SAMPLES_AT_ONCE
    )  # none in a run of 0 rounds
    parts = [source.visited[at : at + _SAMPLES_AT_ONCE] for at in starts]
    shown = engine.fabric.is_global_zero
    for samples in tqdm(parts, f"Label {task.name}", disable=not shown, leave=False):
        predicted = engine.logits(index, source.inputs(samples)).softmax(-1)
        where = torch.from_numpy(samples).to(device)
        confidence[where], labels[where] = predicted.max(-1)
        if soft:
            if probabilities is None:
                probabilities = torch.zeros(count, predicted.shape[1], device=device)
            probabilities[where] = predicted
    return TeacherLabels(labels, confidence, probabilities)
