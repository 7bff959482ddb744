"""What a cell was run with and what it cost: versions, commit, peak memory."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

_PACKAGES = ("fusion-plugins", "fusion-bench", "torch", "transformers")
_MIB = 2**20


def versions() -> dict[str, str]:
    """Versions of the packages that decide a result, and of Python."""
    return {n: version(n) for n in _PACKAGES} | {"python": platform.python_version()}


def git_commit(folder: str | Path = ".") -> str | None:
    """The commit checked out in a folder, "-dirty" if changed; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        run = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None if run.returncode == 0 else None


class PeakMemory:
    """Peak memory in MiB between `start` and `read`.

    CPU: the process's peak resident memory, libraries and pools included. Linux can
    restart that count; elsewhere it is the peak since the process began, and on Windows
    it is unknown. CUDA: the peak that PyTorch had allocated.
    """

    def start(self) -> None:
        _restart_resident_peak()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()

    def read(self) -> dict[str, float | None]:
        cuda = None
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            cuda = torch.cuda.max_memory_allocated() / _MIB
        return {"cpu": _resident_peak(), "cuda": cuda}


def _restart_resident_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # see proc(5)
    except OSError:
        pass


def _resident_peak() -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if "VmHWM" in line) / 1024
    except (OSError, StopIteration):
        pass
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _MIB if sys.platform == "darwin" else peak / 1024
