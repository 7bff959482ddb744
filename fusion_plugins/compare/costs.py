"""What merging and evaluating one model took: time, energy, parameters, samples."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from .environment import energy, uses_cuda
from .evaluation import Evaluation


class Meter:
    """Seconds, and joules where the GPU counts them, of the parts of a cell."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.joules: dict[str, float | None] = {}
        self.start()

    def start(self) -> None:
        """A part begins."""
        self._begun, self._energy = time.perf_counter(), energy()

    def stop(self, part: str) -> None:
        """It ends; the name of one before is taken over."""
        if uses_cuda():
            torch.cuda.synchronize()
        self.seconds[part] = time.perf_counter() - self._begun
        now = energy()
        known = now is not None and self._energy is not None
        self.joules[part] = now - self._energy if known else None  # type: ignore[operator]

    def record(self) -> dict[str, Any]:
        """For a cell's file."""
        return {"seconds": dict(self.seconds), "energy_joules": dict(self.joules)}


def count_samples(found: Evaluation, method: object) -> dict[str, int | None]:
    """Test samples, and those that a method has learned or chosen from, repeats too."""
    answers = found.answers.values()
    evaluated = sum(len(answer.right) for answer in answers) if answers else None
    return {
        "evaluated": evaluated,
        "adapted": getattr(method, "samples_seen", None),
    }


def numel(model: nn.Module) -> int:
    """All parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def parameters(model: nn.Module, base: int | None) -> dict[str, int | None]:
    """In all, beyond the pretrained model's, and the most that one task needs."""
    total = numel(model)
    ask: Any = getattr(model, "parameter_report", None)
    if ask is not None:  # some tints replace a layer, some add one
        report = ask()
        per_task = report["trunk"] + max(report["per_task"].values())
        return {"model": total, "added": int(report["tints"]), "per_task": per_task}
    added = None if base is None else max(total - base, 0)
    return {"model": total, "added": added, "per_task": total}


def experts_parameters(base: int | None, experts: int) -> dict[str, int | None]:
    """Of all experts, as large as the pretrained model each."""
    if base is None:
        return {"model": None, "added": None, "per_task": None}
    return {"model": base * experts, "added": base * (experts - 1), "per_task": base}
