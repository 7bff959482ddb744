"""Moments between the steps of a worker, and what follows from them."""

from __future__ import annotations

import itertools
import statistics
import time

import common

_MIB = 2**20


class Marks:
    """Notes the moments between steps, of a worker that may run on a GPU.

    Args:
        device: Where the steps run.
    """

    def __init__(self, device):
        self._device, self._moments = device, []

    def mark(self) -> None:
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)
        self._moments.append((time.perf_counter(), time.process_time()))

    def figures(self, steps: int) -> dict:
        """Seconds of each of the last `steps` steps, and the peak memory so far."""
        moments = self._moments[-steps - 1 :]
        seconds, cpu = (
            [later[i] - earlier[i] for earlier, later in itertools.pairwise(moments)]
            for i in (0, 1)
        )
        return {
            "seconds": statistics.median(seconds),
            "least_seconds": min(seconds),
            "cpu_seconds": statistics.median(cpu),
            "peak_mib": self.peak_mib(),
        }

    def peak_mib(self) -> float:
        if self._device.type != "cuda":
            return common.peak_memory_mib()
        import torch

        return torch.cuda.max_memory_allocated(self._device) / _MIB


class EngineMarks:
    """A callback of the engine: marks, and seconds per part once it is warm."""

    def __init__(self, marks: Marks, steps: int):
        self._marks, self._steps = marks, steps
        self.parts: dict[str, float] = {}

    def on_start(self, engine) -> None:
        self._first = engine.schedule.steps - self._steps
        self._marks.mark()

    def on_step(self, engine, report) -> None:
        self._marks.mark()
        if engine.step == self._first:
            engine.seconds.clear()

    def on_end(self, engine) -> None:
        for part, seconds in engine.seconds.items():
            self.parts[f"part/{part}"] = seconds / self._steps
