"""How good candidates are on unlabelled samples, and when one is clearly behind."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..adaptation import AdaptationTask, predictions

# (task index, model inputs) -> a candidate's logits, shape (samples, classes).
Logits = Callable[[int, Tensor], Tensor]

_FIRST = 0.25  # share of the samples after which a candidate may be dropped
_ERRORS = 3.0  # standard errors behind the best
_ENOUGH = 8  # degrees of freedom; the error of fewer samples says nothing


def agreement(logits: Tensor, classes: Tensor) -> Tensor:
    """1 for each sample whose most probable class is the given one, else 0.

    A prediction that holds NaN is of no class.
    """
    return ((logits.argmax(-1) == classes) & ~logits.isnan().any(-1)).float()


def negative_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Of each sample's prediction, in nats: 0 is certain. The classes are not used.

    A prediction that holds NaN or Inf counts as that of all classes alike.
    """
    log_p = logits.log_softmax(-1)
    certainty = torch.xlogy(log_p.exp(), log_p.exp()).sum(-1)
    return certainty.nan_to_num(nan=-math.log(logits.shape[-1]))


@dataclass(frozen=True)
class Scores:
    """A candidate's value on every sample that was looked at.

    Attributes:
        values: Per task, shape (samples,); higher is better.
    """

    values: tuple[Tensor, ...]

    @property
    def tasks(self) -> list[float]:
        """Mean of each task."""
        return [values.mean().item() for values in self.values]

    @property
    def mean(self) -> float:
        """Mean over tasks."""
        return sum(self.tasks) / len(self.values)

    @property
    def rank(self) -> tuple[float, float]:
        """What candidates are ordered by: the mean, then the worst task."""
        return self.mean, min(self.tasks)

    @property
    def standard_error(self) -> float:
        """Of the mean over tasks, for samples drawn independently within each task."""
        variances = [v.var(correction=0).item() / len(v) for v in self.values]
        return sum(variances) ** 0.5 / len(self.values)

    def is_behind(self, best: Scores) -> bool:
        """Whether it is worse than `best` by three standard errors of the difference.

        The difference is taken sample by sample, on the samples that both have seen.
        """
        pairs = zip(self.values, best.values, strict=True)
        difference = Scores(tuple(own - other[: len(own)] for own, other in pairs))
        enough = sum(len(values) - 1 for values in self.values) >= _ENOUGH
        return enough and difference.mean < -_ERRORS * difference.standard_error


@dataclass(frozen=True)
class Scorer:
    """Looks at candidates, always on the same samples in the same order.

    Attributes:
        tasks: The tasks.
        samples: Per task, dataset indices in a random order.
        classes: Per task, what the predictions are compared with, shape (samples,).
        measure: (logits, classes) -> a value for each sample.
    """

    tasks: Sequence[AdaptationTask]
    samples: Sequence[np.ndarray]
    classes: Sequence[Tensor]
    measure: Callable[[Tensor, Tensor], Tensor]

    def score(self, logits: Logits, best: Scores | None) -> tuple[Scores, bool]:
        """A candidate's values, and whether it was dropped after the first quarter.

        Args:
            logits: The candidate's.
            best: Of the best candidate so far; None to drop nothing.
        """
        ends = [int(np.ceil(_FIRST * len(samples))) for samples in self.samples]
        first = self._values(logits, [slice(end) for end in ends])
        if best is not None and Scores(first).is_behind(best):
            return Scores(first), True
        rest = self._values(logits, [slice(end, None) for end in ends])
        pairs = zip(first, rest, strict=True)
        return Scores(tuple(torch.cat(pair) for pair in pairs)), False

    def _values(self, logits: Logits, parts: Sequence[slice]) -> tuple[Tensor, ...]:
        found = []
        for index, part in enumerate(parts):
            samples, classes = self.samples[index][part], self.classes[index][part]
            if len(samples):  # one sample has no rest
                predicted = predict(self.tasks, index, samples, logits)
                found.append(
                    self.measure(predicted, classes.to(predicted.device)).cpu()
                )
            else:
                found.append(torch.empty(0))
        return tuple(found)


def taught(
    tasks: Sequence[AdaptationTask],
    samples: Sequence[np.ndarray],
    expert: Callable[[int], Logits],
) -> list[Tensor]:
    """Each expert's classes of its own task's samples.

    Args:
        tasks: The tasks.
        samples: Per task, dataset indices.
        expert: Task index -> its expert's logits; asked for in turn.
    """
    return [
        predict(tasks, index, samples[index], expert(index)).argmax(-1)
        for index in range(len(tasks))
    ]


@torch.no_grad()
def predict(
    tasks: Sequence[AdaptationTask], index: int, samples: np.ndarray, logits: Logits
) -> Tensor:
    """Logits of some samples of one task, shape (samples, classes)."""
    parts = predictions(tasks[index], samples, lambda inputs: logits(index, inputs))
    return torch.cat([found for _, found in parts])
