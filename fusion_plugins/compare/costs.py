"""What a cell was run with and took: versions, time, energy, memory, samples, parameters."""

from __future__ import annotations

import contextlib
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .evaluation import Evaluation

_PACKAGES = ("fusion-plugins", "fusion-bench", "torch", "transformers")
_MIB = 2**20


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
        before, now = self._energy, energy()
        self.joules[part] = None if before is None or now is None else now - before

    def record(self) -> dict[str, Any]:
        """For a cell's file."""
        return {"seconds": dict(self.seconds), "energy_joules": dict(self.joules)}


def count_samples(found: Evaluation, method: object) -> dict[str, int | None]:
    """Test samples, and those that a method has learned or chosen from, repeats too."""
    evaluated = sum(len(answers.right) for answers in found.answers.values()) or None
    return {"evaluated": evaluated, "adapted": getattr(method, "samples_seen", None)}


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


def versions() -> dict[str, str]:
    """Versions of the packages that decide a result, and of Python."""
    return {n: _version(n) for n in _PACKAGES} | {"python": platform.python_version()}


_version = cache(version)  # which reads and parses a file


def git_commit() -> str | None:
    """The commit checked out here, "-dirty" if changed; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        run = subprocess.run(command, capture_output=True, text=True, timeout=30)
        return run.stdout.strip() or None
    return None


def restart_peak_memory() -> None:
    """Let `peak_memory` count from here."""
    with contextlib.suppress(OSError):  # only Linux can, see proc(5)
        Path("/proc/self/clear_refs").write_text("5")
    if uses_cuda():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, float | None]:
    """Peak memory in MiB since `restart_peak_memory`.

    cpu: the process's peak resident memory, libraries and pools included; outside Linux
    it is the peak since the process began, and on Windows it is unknown. cuda: the peak
    that PyTorch had allocated.
    """
    return {"cpu": _resident_peak(), "cuda": _cuda(torch.cuda.max_memory_allocated)}


def memory() -> dict[str, float | None]:
    """What the process holds now, in MiB; cpu: only known on Linux."""
    return {"cpu": _status("VmRSS"), "cuda": _cuda(torch.cuda.memory_allocated)}


def uses_cuda() -> bool:
    """Whether this process has begun to use a GPU."""
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def _cuda(ask: Callable[[], int]) -> float | None:
    return ask() / _MIB if uses_cuda() else None


def energy() -> float | None:
    """Joules that the GPU has used so far; None without one, or without pynvml."""
    handle = _nvml_handle(torch.cuda.current_device()) if uses_cuda() else None
    if handle is None:
        return None
    nvml, device = handle
    with contextlib.suppress(nvml.NVMLError):  # older GPUs do not count it
        return nvml.nvmlDeviceGetTotalEnergyConsumption(device) / 1000
    return None


@cache
def _nvml_handle(index: int) -> tuple[Any, Any] | None:
    try:
        nvml: Any = import_module("pynvml")
    except ImportError:
        return None
    with contextlib.suppress(nvml.NVMLError):
        nvml.nvmlInit()
        name = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
        return nvml, nvml.nvmlDeviceGetHandleByUUID(name)
    return None


def _status(name: str) -> float | None:
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        if found := re.search(rf"{name}:\s*(\d+)", status):
            return int(found[1]) / 1024
    return None


def _resident_peak() -> float | None:
    if (peak_mib := _status("VmHWM")) is not None:
        return peak_mib
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _MIB if sys.platform == "darwin" else peak / 1024
