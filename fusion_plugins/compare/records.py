"""The record of a cell, as it stands in its file, and what a finished method still knows."""

from __future__ import annotations

import traceback
from datetime import datetime, timezone
from typing import Any

from .cells import Cell
from .costs import git_commit, versions
from .evaluation import Evaluation, Scores
from .files import FORMAT, slug


def new_record(cell: Cell, part: str | None = None, **known: object) -> dict:
    """A record with what is known of the cell; `part` names one model of several."""
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
        "answers": {},
        "seconds": {"merge": None, "evaluate": None},
        "peak_memory_mib": {},
        "energy_joules": {"merge": None, "evaluate": None},
        "samples": {"evaluated": None, "adapted": None},
        "parameters": {"model": None, "added": None, "per_task": None},
        "versions": versions(),
        "git_commit": git_commit(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config": {},
        "artifacts": artifacts(None),
        **known,
    }


def measured(scores: Scores, found: Evaluation) -> dict[str, Any]:
    """What a record says of a model's scores and answers."""
    own = {"metrics": scores.metrics, "lower_is_better": scores.lower_is_better}
    return {
        "metric": scores.metric,
        "higher_is_better": scores.higher_is_better,
        "tasks": scores.tasks,
        "average": scores.average() or {scores.metric: None},
        "answers": {task: answers.stored() for task, answers in found.answers.items()},
        **(own if scores.metrics else {}),
    }


def failed_record(cell: Cell, error: BaseException, seconds: float) -> dict:
    """The record of a cell that raised after some seconds."""
    text = "".join(traceback.format_exception(error))
    return new_record(
        cell,
        status="failed",
        error={"type": type(error).__name__, "message": str(error), "traceback": text},
        seconds={"merge": seconds, "evaluate": None},
    )


def artifacts(method: object) -> dict[str, dict | None]:
    """Plain lists of what the report draws; None for what a method does not have."""
    return {
        "coefficients": _coefficients(getattr(method, "result", None)),
        "cosines": _cosines(getattr(method, "disentanglement", None)),
        "history": _history(getattr(method, "history", None)),
        "selection": _selection(getattr(method, "response", None)),
    }


def _selection(record: Any) -> dict | None:
    """What `method=select` tried: `score`, `candidates`, `chosen`."""
    return record if isinstance(record, dict) and "candidates" in record else None


def _coefficients(saved: Any) -> dict | None:
    """Rows are tasks, columns are layers."""
    if not all(hasattr(saved, name) for name in ("tasks", "layers", "applied")):
        return None
    values = saved.applied.tolist()
    return {"tasks": list(saved.tasks), "keys": list(saved.layers), "values": values}


def _cosines(result: Any) -> dict | None:
    if not hasattr(result, "cosines"):
        return None
    before, after = (matrix.tolist() for matrix in result.cosines())
    return {"tasks": list(result.tasks), "before": before, "after": after}


def _history(entries: object) -> dict | None:
    """Means over the tasks that took part in each step."""
    if not isinstance(entries, list) or not entries:
        return None
    history = {
        "step": [entry["step"] for entry in entries],
        "loss": [_mean_over_tasks(entry, "loss/") for entry in entries],
        "entropy": [_mean_over_tasks(entry, "entropy/") for entry in entries],
        "coefficient": [entry.get("coefficient_mean") for entry in entries],
    }
    return {k: v for k, v in history.items() if any(x is not None for x in v)}


def _mean_over_tasks(entry: dict, prefix: str) -> float | None:
    values = [value for key, value in entry.items() if key.startswith(prefix)]
    return sum(values) / len(values) if values else None
