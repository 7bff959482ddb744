"""The record of a cell, as it stands in its file."""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass, field
from datetime import datetime, timezone

from .artifacts import artifacts
from .cells import Cell
from .environment import git_commit, versions
from .evaluation import Scores, Tasks
from .files import FORMAT


@dataclass
class Measured:
    """One model of a cell: its numbers, time and size."""

    part: str | None
    tasks: Tasks
    merge_seconds: float
    evaluate_seconds: float
    parameters: dict[str, int | None]
    config: dict
    artifacts: dict = field(default_factory=lambda: artifacts(None))


def new_record(cell: Cell, part: str | None = None) -> dict:
    return {
        "format": FORMAT,
        "id": cell.id if part is None else f"{cell.id}.{slug(part)}",
        "cell": cell.id,
        "method": cell.method.name,
        "label": cell.method.label + ("" if part is None else f" / {part}"),
        "overrides": dict(cell.method.overrides),
        "seed": cell.seed,
        "part": part,
        "status": "done",
        "error": None,
        "metric": None,
        "higher_is_better": None,
        "tasks": {},
        "average": {},
        "normalised": None,
        "normalised_average": None,
        "seconds": {"merge": None, "evaluate": None},
        "parameters": {"model": None, "added": None},
        "versions": versions(),
        "git_commit": git_commit(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config": {},
        "artifacts": artifacts(None),
    }


def slug(part: str) -> str:
    """A part's name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", part)


def done_record(cell: Cell, measured: Measured, scores: Scores) -> dict:
    return new_record(cell, measured.part) | {
        "metric": scores.metric,
        "higher_is_better": scores.higher_is_better,
        "tasks": scores.tasks,
        "average": scores.average(),
        "seconds": {
            "merge": measured.merge_seconds,
            "evaluate": measured.evaluate_seconds,
        },
        "parameters": measured.parameters,
        "config": measured.config,
        "artifacts": measured.artifacts,
    }


def failed_record(cell: Cell, error: BaseException, seconds: float) -> dict:
    return new_record(cell) | {
        "status": "failed",
        "error": {
            "type": type(error).__name__,
            "message": str(error),
            "traceback": "".join(traceback.format_exception(error)),
        },
        "seconds": {"merge": seconds, "evaluate": None},
    }
