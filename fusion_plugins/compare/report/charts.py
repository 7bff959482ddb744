"""The bar chart of averages, and accuracy against the seconds a merge takes."""

from __future__ import annotations

from itertools import product
from typing import Any

from ..columns import MERGE
from ..numbers import Spread
from ..results import Comparison, Row
from .axes import Axis, linear_axis, log_axis
from .published import published_average

SHORTEST = 0.01  # seconds; what is faster is drawn here, a logarithm needs a start


def _averages(comparison: Comparison) -> list[tuple[Row, Spread]]:
    found = ((row, comparison.average(row)) for row in comparison.finished)
    return [(row, spread) for row, spread in found if spread and spread.finite]


def bar_chart(comparison: Comparison) -> dict | None:
    """Bars from zero, best first, with the deviation over seeds; None without any."""
    scale, averages = comparison.scale, _averages(comparison)
    if not averages:
        return None
    ends = [s.mean + sign * (s.deviation or 0) for _, s in averages for sign in (1, -1)]
    axis = linear_axis([end * scale.factor for end in ends], zero=True)
    if scale.percent:
        low = int(min(axis.low, 0))
        axis = Axis(low, 100.0, tuple(range(low, 101, 20)))
    bars = [_bar(row, spread, axis, comparison) for row, spread in averages]
    return {
        "axis": axis,
        "bars": bars,
        "has_published": any(bar["published"] is not None for bar in bars),
        "has_references": any(bar["row"].is_reference for bar in bars),
        "has_deviation": any(bar["error"] for bar in bars),
    }


def _bar(row: Row, spread: Spread, axis: Axis, comparison: Comparison) -> dict:
    factor = comparison.scale.factor
    mean, deviation = spread.mean * factor, (spread.deviation or 0) * factor
    left, right = sorted((axis.place(0), axis.place(mean)))
    low, high = axis.place(mean - deviation), axis.place(mean + deviation)
    published = published_average(row, comparison)
    return {
        "row": row,
        "text": comparison.scale.spread(spread),
        "left": left,
        "width": round(right - left, 3),
        "error": {"left": low, "width": round(high - low, 3)} if deviation else None,
        "published": None if published is None else axis.place(published),
        "published_value": published,
    }


def time_chart(comparison: Comparison) -> dict | None:
    """Average against seconds to merge; pretrained and experts are level lines."""
    levels: list[dict[str, Any]] = []
    dots: list[dict[str, Any]] = []
    for row, average in _averages(comparison):
        seconds = MERGE.spread(row)
        value = average.mean * comparison.scale.factor
        place: dict[str, Any] = {
            "row": row,
            "value": value,
            "text": comparison.scale.spread(average),
        }
        if row.is_reference:
            levels.append(place)
        elif seconds is not None and seconds.finite:
            dots.append(place | {"at": max(seconds.mean, SHORTEST)})
    if not dots:
        return None
    x_axis = log_axis([dot["at"] for dot in dots])
    y_axis = linear_axis([place["value"] for place in dots + levels])
    for place in dots + levels:
        place["y"] = 100 - y_axis.place(place["value"])
    for dot in dots:
        dot |= {"x": x_axis.place(dot["at"]), "seconds": MERGE.text(dot["at"])}
    place_labels(dots)
    return {
        "x_axis": x_axis,
        "y_axis": y_axis,
        "dots": dots,
        "levels": levels,
        "shortest": SHORTEST,
        "has_short": any(dot["at"] <= SHORTEST for dot in dots),
    }


# Offsets (px) of a label's centre from its dot, nicest first.
_OFFSETS: list[tuple[int, ...]] = sorted(
    product((0, 15, -15, 28, -28), repeat=2), key=lambda o: o[0] ** 2 + o[1] ** 2
)[1:]
_NARROW = (270, 300)  # px, the plot on a phone: what fits there fits anywhere


def place_labels(dots: list[dict]) -> None:
    """Give every dot an offset (`dx`, `dy`, px) for its number, clear of the others."""
    width, height = _NARROW
    spots = [(dot["x"] / 100 * width, dot["y"] / 100 * height) for dot in dots]
    taken: list[tuple[float, float]] = []
    for dot, (x, y) in zip(dots, spots, strict=True):

        def crowding(offset: tuple[int, ...], x: float = x, y: float = y) -> int:
            at = (x + offset[0], y + offset[1])
            outside = not (8 < at[0] < width - 8 and 8 < at[1] < height - 8)
            near_dots = sum(_near(at, spot, 13, 13) for spot in spots)
            near_labels = sum(_near(at, label, 19, 15) for label in taken)
            return 2 * near_labels + near_dots + 3 * outside

        dot["dx"], dot["dy"] = min(_OFFSETS, key=crowding)
        taken.append((x + dot["dx"], y + dot["dy"]))


def _near(
    first: tuple[float, float], second: tuple[float, float], width: float, height: float
) -> bool:
    return abs(first[0] - second[0]) < width and abs(first[1] - second[1]) < height
