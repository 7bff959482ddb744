"""What a finished method object still knows: coefficients, cosines, history."""

from __future__ import annotations

from collections.abc import Sequence


def artifacts(method: object) -> dict[str, dict | None]:
    """Plain lists of what the report draws; None for what a method does not have."""
    return {
        "coefficients": _coefficients(getattr(method, "result", None)),
        "cosines": _cosines(getattr(method, "disentanglement", None)),
        "history": _history(getattr(method, "history", None)),
    }


def _coefficients(saved: object) -> dict | None:
    """Rows are tasks, columns are layers."""
    if not all(hasattr(saved, name) for name in ("tasks", "layers", "applied")):
        return None
    return {
        "tasks": list(saved.tasks),
        "keys": list(saved.layers),
        "values": saved.applied.tolist(),
    }


def _cosines(result: object) -> dict | None:
    if not hasattr(result, "cosines"):
        return None
    before, after = result.cosines()
    return {
        "tasks": list(result.tasks),
        "before": before.tolist(),
        "after": after.tolist(),
    }


def _history(entries: object) -> dict | None:
    """Means over the tasks that took part in each step."""
    if not isinstance(entries, list) or not entries:
        return None
    history = {"step": [entry["step"] for entry in entries]}
    for series in ("loss", "entropy"):
        history[series] = [_mean_over_tasks(entry, series) for entry in entries]
    history["coefficient"] = [entry.get("coefficient_mean") for entry in entries]
    return {k: v for k, v in history.items() if any(x is not None for x in v)}


def _mean_over_tasks(entry: dict, series: str) -> float | None:
    values: Sequence[float] = [
        v for k, v in entry.items() if k.startswith(f"{series}/")
    ]
    return sum(values) / len(values) if values else None
