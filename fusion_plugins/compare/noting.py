"""Notes which test samples a model gets right, whatever task pool evaluates it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torchmetrics.classification import MulticlassAccuracy

from ..common.identity import fingerprint
from .files import Answers

_ROUNDING = 1e-5  # of float32, between a share that a pool reports and ours


class Notes:
    """Every accuracy that was computed, with its batches, in order."""

    def __init__(self) -> None:
        self._found: list[tuple[nn.Module, list[tuple[Tensor, Tensor]]]] = []

    def __call__(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        """A hook of torch's modules, which torchmetrics' metrics are."""
        if not isinstance(module, MulticlassAccuracy) or len(inputs) != 2:
            return
        predicted, classes = inputs
        if predicted.ndim != 2 or classes.ndim != 1:  # as for pixels
            return
        if not self._found or self._found[-1][0] is not module:
            self._found.append((module, []))
        right = predicted.argmax(1) == classes
        self._found[-1][1].append((right.cpu(), classes.cpu()))

    def answers(self, tasks: Mapping[str, Mapping[str, float]]) -> dict[str, Answers]:
        """Task -> answers; empty unless they give just the accuracies reported.

        Args:
            tasks: Task -> metric -> value, in the order of evaluation.
        """
        reported = {t: m["accuracy"] for t, m in tasks.items() if "accuracy" in m}
        if len(reported) != len(self._found):
            return {}
        joined = (_joined(batches) for _, batches in self._found)
        found = dict(zip(reported, joined, strict=True))
        same = (
            math.isclose(found[task].right.mean(), share, abs_tol=_ROUNDING)
            for task, share in reported.items()
        )
        return found if all(same) else {}


def _joined(batches: list[tuple[Tensor, Tensor]]) -> Answers:
    right, classes = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return Answers(right.numpy(), fingerprint(classes))


@contextmanager
def noted_answers() -> Iterator[Notes]:
    """Note every batch that an accuracy of torchmetrics is computed of.

    All of FusionBench's classification pools do that, one accuracy for each task.
    """
    notes = Notes()
    handle = register_module_forward_hook(notes)
    try:
        yield notes
    finally:
        handle.remove()
