"""What a cell was run with and what it cost: versions, commit, peak memory."""

from __future__ import annotations

import contextlib
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("fusion-plugins", "fusion-bench", "torch", "transformers")
_MIB = 2**20


def versions() -> dict[str, str]:
    """Versions of the packages that decide a result, and of Python."""
    return {n: version(n) for n in _PACKAGES} | {"python": platform.python_version()}


def git_commit(folder: str | Path = ".") -> str | None:
    """The commit checked out in a folder, "-dirty" if changed; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    options: dict[str, Any] = {
        "cwd": folder,
        "capture_output": True,
        "text": True,
        "timeout": 30,
    }
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        run = subprocess.run(command, check=False, **options)
        return run.stdout.strip() or None
    return None


def restart_peak_memory() -> None:
    """Let `peak_memory` count from here."""
    with contextlib.suppress(OSError):  # only Linux can, see proc(5)
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, float | None]:
    """Peak memory in MiB since `restart_peak_memory`.

    cpu: the process's peak resident memory, libraries and pools included; outside Linux
    it is the peak since the process began, and on Windows it is unknown. cuda: the peak
    that PyTorch had allocated.
    """
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    allocated = torch.cuda.max_memory_allocated() / _MIB if cuda else None
    return {"cpu": _resident_peak(), "cuda": allocated}


def _resident_peak() -> float | None:
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        if found := re.search(r"VmHWM:\s*(\d+)", status):
            return int(found[1]) / 1024
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _MIB if sys.platform == "darwin" else peak / 1024
