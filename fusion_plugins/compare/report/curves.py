"""Training curves: one small chart per method and series, one line per seed."""

from __future__ import annotations

import math
from itertools import accumulate

from .axes import Axis, linear_axis
from .results import Comparison

MOST_POINTS = 240  # per line; more than a screen shows


def training_curves(comparison: Comparison) -> list[dict]:
    """Every method that kept a history, with one chart per series of numbers.

    Single steps see one batch, often of one task, and jump: they are drawn thin, with
    their running mean over whole turns of the tasks on top.
    """
    found = []
    for row in comparison.finished:
        histories = row.artifacts("history")
        tasks = len(comparison.tasks)
        panels = [_panel(name, histories, tasks) for name in _series_names(histories)]
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


def _panel(name: str, histories: list, tasks: int) -> dict | None:
    lines = [(seed, _points(name, history)) for seed, history in histories]
    lines = [(seed, points) for seed, points in lines if points]
    if not lines:
        return None
    x_axis = linear_axis([step for _, points in lines for step, _ in points], snug=True)
    y_axis = linear_axis([value for _, points in lines for _, value in points], bins=4)
    window = _window(max(len(points) for _, points in lines), tasks)
    return {
        "name": name,
        "window": window,
        "x_axis": x_axis,
        "y_axis": y_axis,
        "lines": [
            _line(index, seed, points, window, (x_axis, y_axis))
            for index, (seed, points) in enumerate(lines)
        ],
    }


def _points(name: str, history: dict) -> list[tuple[float, float]]:
    values = history.get(name) or []
    steps = history.get("step") or range(len(values))
    return [
        (float(step), float(value))
        for step, value in zip(steps, values, strict=True)
        if _is_number(step) and _is_number(value)
    ]


def _window(steps: int, tasks: int) -> int:
    """Steps per running mean: a twelfth of the run in whole turns; 1 in short runs."""
    turns = max(1, round(steps / 12 / tasks))
    return turns * tasks if steps >= 4 * turns * tasks else 1


def _line(index: int, seed: int, points: list, window: int, axes: tuple) -> dict:
    means = running_mean(points, window)
    return {
        "style": index % 6,
        "path": _path(thin(means), *axes),
        "raw": _path(thin(points), *axes) if window > 1 else None,
        "text": f"seed {seed}: {means[0][1]:.3g} to {means[-1][1]:.3g}",
    }


def _path(points: list, x_axis: Axis, y_axis: Axis) -> str:
    places = ((x_axis.place(x), 100 - y_axis.place(y)) for x, y in points)
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in places)


def running_mean(points: list, window: int) -> list[tuple[float, float]]:
    """Mean of every `window` points in a row, at the middle of their steps."""
    if window <= 1:
        return points
    sums = list(accumulate((value for _, value in points), initial=0.0))
    steps = [step for step, _ in points]
    return [
        (
            (steps[end - window] + steps[end - 1]) / 2,
            (sums[end] - sums[end - window]) / window,
        )
        for end in range(window, len(sums))
    ] or points


def thin(points: list) -> list:
    """At most `MOST_POINTS` of them, evenly, the last one always."""
    step = -(-len(points) // MOST_POINTS)
    kept = points[::step]
    return kept if kept[-1] is points[-1] else [*kept, points[-1]]


def _is_number(value) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)
