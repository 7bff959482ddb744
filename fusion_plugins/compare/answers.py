"""Which test samples a model got right: noted whatever pool evaluates, stored as bits."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torchmetrics.classification import MulticlassAccuracy

from ..common.identity import fingerprint

_ROUNDING = 1e-5  # of float32, between a share that a pool reports and ours


@dataclass(frozen=True)
class Answers:
    """A model's answers on one task's test samples.

    Attributes:
        right: Whether each is correct, shape (samples,), bool.
        order: Fingerprint of the true classes in the order of evaluation.
    """

    right: np.ndarray
    order: str

    def stored(self) -> dict[str, Any]:
        """As a cell's file holds them: a bit for each sample, in base64."""
        bits = base64.b64encode(np.packbits(self.right).tobytes()).decode("ascii")
        return {"samples": len(self.right), "order": self.order, "right": bits}

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Answers:
        """What `stored` gave."""
        packed = np.frombuffer(base64.b64decode(stored["right"]), dtype=np.uint8)
        bits = np.unpackbits(packed, count=stored["samples"])
        return cls(bits.astype(bool), stored["order"])


@dataclass
class Notes:
    """Every accuracy that was computed, with its batches, in order."""

    _accuracies: list[MulticlassAccuracy] = field(default_factory=list)
    _batches: list[list[tuple[Tensor, Tensor]]] = field(default_factory=list)

    def __call__(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        """A hook of torch's modules, which torchmetrics' metrics are."""
        if not isinstance(module, MulticlassAccuracy) or len(inputs) != 2:
            return
        predicted, classes = inputs
        if predicted.ndim != 2 or classes.ndim != 1:  # as for pixels
            return
        if not self._accuracies or self._accuracies[-1] is not module:
            self._accuracies.append(module)
            self._batches.append([])
        right = predicted.argmax(1) == classes
        self._batches[-1].append((right.cpu(), classes.cpu()))

    def answers(self, tasks: Mapping[str, Mapping[str, float]]) -> dict[str, Answers]:
        """Task -> answers; empty unless they give just the accuracies reported.

        Args:
            tasks: Task -> metric -> value, in the order of evaluation.
        """
        reported = {t: m["accuracy"] for t, m in tasks.items() if "accuracy" in m}
        if len(reported) != len(self._batches):
            return {}
        found = dict(zip(reported, map(_joined, self._batches), strict=True))
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
