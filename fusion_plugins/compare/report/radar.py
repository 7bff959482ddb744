"""The radar chart: one spoke per task, one outline per method."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..results import Comparison, Row
from .axes import Axis, linear_axis, tick_text

RADIUS = 112.0  # in the units of the drawing, which is 360 wide
SHOWN = 3  # merged methods drawn from the start, next to the references
LONGEST = 11  # letters of a task's name beside its spoke


def radar_chart(comparison: Comparison) -> dict | None:
    """Outlines of all finished methods; None for fewer than three tasks."""
    tasks, scale = comparison.tasks, comparison.scale
    found = [(row, _values(row, comparison)) for row in comparison.finished]
    rows = [(row, values) for row, values in found if values]
    if len(tasks) < 3 or not rows:
        return None
    values = [value * scale.factor for _, outline in rows for value in outline]
    axis = linear_axis(values, zero=True)
    if scale.percent and axis.low >= 0:
        axis = Axis(0.0, 100.0, (0.0, 25.0, 50.0, 75.0, 100.0))
    merged = [row for row, _ in rows if not row.is_reference]
    outlines = [
        _outline(row, outline, axis, comparison)
        | {"shown": row.is_reference or row in merged[:SHOWN]}
        for row, outline in rows
    ]
    return {
        "spokes": [_spoke(task, index, len(tasks)) for index, task in enumerate(tasks)],
        "rings": [_ring(tick, axis, len(tasks)) for tick in axis.ticks[1:]],
        "outlines": outlines,
        "centre": tick_text(axis.low),
    }


def _values(row: Row, comparison: Comparison) -> list[float] | None:
    spreads = [comparison.task(row, task) for task in comparison.tasks]
    means = [spread.mean for spread in spreads if spread is not None and spread.finite]
    return means if len(means) == len(spreads) else None


def _outline(row: Row, values: list[float], axis: Axis, comparison: Comparison) -> dict:
    scale = comparison.scale
    pairs = zip(comparison.tasks, values, strict=True)
    text = ", ".join(f"{task} {scale.text(value)}" for task, value in pairs)
    return {
        "row": row,
        "points": _ringed(_radius(value * scale.factor, axis) for value in values),
        "text": text,
    }


def _spoke(task: str, index: int, count: int) -> dict:
    x, y = _point(RADIUS + 10, index, count)
    anchor = "middle" if abs(x) < 12 else ("start" if x > 0 else "end")
    short = task if len(task) <= LONGEST else task[: LONGEST - 1] + "…"
    end = _point(RADIUS, index, count)
    return {"task": task, "short": short, "end": end, "x": x, "y": y, "anchor": anchor}


def _ring(tick: float, axis: Axis, count: int) -> dict:
    radius = _radius(tick, axis)
    return {"points": _ringed([radius] * count), "y": -radius, "text": tick_text(tick)}


def _radius(value: float, axis: Axis) -> float:
    return axis.place(value) / 100 * RADIUS


def _ringed(radii: Iterable[float]) -> list[tuple[float, float]]:
    radii = list(radii)
    return [_point(radius, index, len(radii)) for index, radius in enumerate(radii)]


def _point(radius: float, index: int, count: int) -> tuple[float, float]:
    angle = 2 * math.pi * index / count
    return round(radius * math.sin(angle), 2), round(-radius * math.cos(angle), 2)
