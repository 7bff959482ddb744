"""The radar chart: one spoke per task, one outline per method."""

from __future__ import annotations

import math

from .axes import Axis, linear_axis, tick_text
from .results import Comparison, Row

RADIUS = 112.0  # in the units of the drawing, which is 360 wide
SHOWN = 3  # merged methods drawn from the start, next to the references
LONGEST = 11  # letters of a task's name beside its spoke


def radar_chart(comparison: Comparison) -> dict | None:
    """Outlines of all finished methods; None for fewer than three tasks."""
    tasks, factor = comparison.tasks, comparison.scale.factor
    rows = {
        row.number: values
        for row in comparison.finished
        if (values := _values(row, comparison)) is not None
    }
    if len(tasks) < 3 or not rows:
        return None
    values = [value * factor for outline in rows.values() for value in outline]
    axis = linear_axis(values, zero=True)
    if comparison.scale.percent and axis.low >= 0:
        axis = Axis(0.0, 100.0, (0.0, 25.0, 50.0, 75.0, 100.0))
    outlines = [
        _outline(row, rows[row.number], axis, comparison)
        for row in comparison.finished
        if row.number in rows
    ]
    _choose_shown(outlines)
    return {
        "spokes": [_spoke(task, index, len(tasks)) for index, task in enumerate(tasks)],
        "rings": [_ring(tick, axis, len(tasks)) for tick in axis.ticks[1:]],
        "outlines": outlines,
        "centre": tick_text(axis.low),
    }


def _values(row: Row, comparison: Comparison) -> list[float] | None:
    spreads = [row.over_seeds("tasks", t, comparison.metric) for t in comparison.tasks]
    if any(spread is None or not spread.finite for spread in spreads):
        return None
    return [spread.mean for spread in spreads]


def _outline(row: Row, values: list[float], axis: Axis, comparison: Comparison) -> dict:
    factor, count = comparison.scale.factor, len(values)
    points = [
        _point(axis.place(value * factor) / 100 * RADIUS, index, count)
        for index, value in enumerate(values)
    ]
    texts = [
        f"{task} {comparison.scale.text(value)}"
        for task, value in zip(comparison.tasks, values, strict=True)
    ]
    return {"row": row, "points": points, "text": ", ".join(texts), "shown": False}


def _choose_shown(outlines: list[dict]) -> None:
    merged = [outline for outline in outlines if not outline["row"].is_reference]
    for outline in outlines:
        outline["shown"] = outline["row"].is_reference or outline in merged[:SHOWN]


def _spoke(task: str, index: int, count: int) -> dict:
    x, y = _point(RADIUS + 10, index, count)
    anchor = "middle" if abs(x) < 12 else ("start" if x > 0 else "end")
    short = task if len(task) <= LONGEST else task[: LONGEST - 1] + "…"
    end = _point(RADIUS, index, count)
    return {"task": task, "short": short, "end": end, "x": x, "y": y, "anchor": anchor}


def _ring(tick: float, axis: Axis, count: int) -> dict:
    radius = axis.place(tick) / 100 * RADIUS
    points = [_point(radius, index, count) for index in range(count)]
    return {"points": points, "y": -radius, "text": tick_text(tick)}


def _point(radius: float, index: int, count: int) -> tuple[float, float]:
    angle = 2 * math.pi * index / count
    return round(radius * math.sin(angle), 2), round(-radius * math.cos(angle), 2)
