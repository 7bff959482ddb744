"""Start a program in a folder of its own, with a clean environment."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from forked import run_script

REPOSITORY = Path(__file__).resolve().parents[2]
FUSION_BENCH = Path(sys.executable).with_name("fusion_bench")
# What a developer may have set, and what would make a run depend on it.
STRAY_PREFIXES = ("HF_", "HYDRA_", "FUSION_BENCH_", "TRANSFORMERS_", "PYTHONPATH")


def start(
    command: Sequence[str | Path], folder: Path, **variables: str
) -> subprocess.CompletedProcess:
    """Run `command` in `folder` to its end and return its status and output."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=clean_environment() | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def start_at_once(
    script: Sequence[str | Path], folder: Path
) -> subprocess.CompletedProcess:
    """As `start`, for a Python script; FusionBench and torch are imported already."""
    return run_script(script, folder, clean_environment())


def clean_environment() -> dict[str, str]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(STRAY_PREFIXES)
    }
    # Wide enough that rich never breaks a line that a test looks for.
    return environment | {"COLUMNS": "400", "CUDA_VISIBLE_DEVICES": ""}
