"""Training curves: one small chart per method and series, one line per seed."""

from __future__ import annotations

import math

from .axes import linear_axis
from .results import Comparison

MOST_POINTS = 240  # per line; more than a screen shows


def training_curves(comparison: Comparison) -> list[dict]:
    """Every method that kept a history, with one chart per series of numbers."""
    found = []
    for row in comparison.finished:
        histories = row.artifacts("history")
        panels = [_panel(name, histories) for name in _series_names(histories)]
        panels = [panel for panel in panels if panel]
        if panels:
            found.append({"row": row, "panels": panels})
    return found


def _series_names(histories: list[tuple[int, dict]]) -> list[str]:
    names: dict[str, None] = {}
    for _, history in histories:
        names.update(dict.fromkeys(history))
    names.pop("step", None)
    return list(names)


def _panel(name: str, histories: list[tuple[int, dict]]) -> dict | None:
    lines = []
    for seed, history in histories:
        values = history.get(name)
        steps = history.get("step") or list(range(len(values or [])))
        points = [
            (float(step), float(value))
            for step, value in zip(steps, values or [])
            if _is_number(step) and _is_number(value)
        ]
        if points:
            lines.append((seed, points))
    if not lines:
        return None
    x_axis = linear_axis([step for _, points in lines for step, _ in points], snug=True)
    y_axis = linear_axis([value for _, points in lines for _, value in points], bins=4)
    return {
        "name": name,
        "x_axis": x_axis,
        "y_axis": y_axis,
        "lines": [
            _line(i, seed, pts, x_axis, y_axis) for i, (seed, pts) in enumerate(lines)
        ],
    }


def _line(index: int, seed: int, points, x_axis, y_axis) -> dict:
    kept = thin(points)
    path = " ".join(
        f"{x_axis.place(x):.2f},{100 - y_axis.place(y):.2f}" for x, y in kept
    )
    text = f"seed {seed}: {points[0][1]:.3g} to {points[-1][1]:.3g}"
    return {"seed": seed, "style": index % 6, "path": path, "text": text}


def thin(points: list) -> list:
    """At most `MOST_POINTS` of them, evenly, the last one always."""
    step = -(-len(points) // MOST_POINTS)
    kept = points[::step]
    return kept if kept[-1] is points[-1] else [*kept, points[-1]]


def _is_number(value) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)
