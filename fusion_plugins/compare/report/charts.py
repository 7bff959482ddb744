"""The bar chart of averages, and accuracy against the seconds a merge takes."""

from __future__ import annotations

from itertools import product

from .axes import Axis, linear_axis, log_axis
from .numbers import seconds_text
from .published import published_average
from .results import Comparison, Row

SHORTEST = 0.01  # seconds; what is faster is drawn here, a logarithm needs a start


def bar_chart(comparison: Comparison) -> dict | None:
    """Bars from zero, best first, with the deviation over seeds; None without any."""
    scale, metric = comparison.scale, comparison.metric
    averages = [(row, row.average(metric)) for row in comparison.finished]
    averages = [(row, spread) for row, spread in averages if spread and spread.finite]
    if not averages:
        return None
    ends = [s.mean + sign * (s.deviation or 0) for _, s in averages for sign in (1, -1)]
    axis = linear_axis([end * scale.factor for end in ends], zero=True)
    if scale.percent:
        axis = Axis(
            min(axis.low, 0), 100.0, tuple(range(int(min(axis.low, 0)), 101, 20))
        )
    bars = [_bar(row, spread, axis, comparison) for row, spread in averages]
    return {
        "axis": axis,
        "zero": axis.place(0),
        "bars": bars,
        "has_published": any(bar["published"] is not None for bar in bars),
        "has_references": any(bar["row"].is_reference for bar in bars),
        "has_deviation": any(bar["error"] for bar in bars),
    }


def _bar(row: Row, spread, axis: Axis, comparison: Comparison) -> dict:
    factor = comparison.scale.factor
    mean, deviation = spread.mean * factor, (spread.deviation or 0) * factor
    ends = sorted((axis.place(0), axis.place(mean)))
    low, high = axis.place(mean - deviation), axis.place(mean + deviation)
    published = published_average(row, comparison)
    return {
        "row": row,
        "text": comparison.scale.spread(spread),
        "left": ends[0],
        "width": round(ends[1] - ends[0], 3),
        "error": {"left": low, "width": round(high - low, 3)} if deviation else None,
        "published": None if published is None else axis.place(published),
        "published_value": published,
    }


def time_chart(comparison: Comparison) -> dict | None:
    """Average against seconds to merge; pretrained and experts are level lines."""
    scale, metric = comparison.scale, comparison.metric
    points, levels = [], []
    for row in comparison.finished:
        average, seconds = row.average(metric), row.over_seeds("seconds", "merge")
        if average is None or not average.finite:
            continue
        value = average.mean * scale.factor
        if row.is_reference:
            levels.append({"row": row, "value": value, "text": scale.spread(average)})
        elif seconds is not None and seconds.finite:
            points.append((row, max(seconds.mean, SHORTEST), value, average))
    if not points:
        return None
    x_axis = log_axis([seconds for _, seconds, _, _ in points])
    y_axis = linear_axis([p[2] for p in points] + [level["value"] for level in levels])
    for level in levels:
        level["y"] = 100 - y_axis.place(level["value"])
    dots = [
        {
            "row": row,
            "x": x_axis.place(seconds),
            "y": 100 - y_axis.place(value),
            "text": scale.spread(average),
            "seconds": seconds_text(seconds),
        }
        for row, seconds, value, average in points
    ]
    place_labels(dots)
    return {
        "x_axis": x_axis,
        "y_axis": y_axis,
        "dots": dots,
        "levels": levels,
        "shortest": SHORTEST,
        "has_short": any(seconds <= SHORTEST for _, seconds, _, _ in points),
    }


# Offsets (px) of a label's centre from its dot, nicest first.
_OFFSETS = sorted(
    product((0, 15, -15, 28, -28), repeat=2), key=lambda o: o[0] ** 2 + o[1] ** 2
)
_NARROW = (270, 300)  # px, the plot on a phone: what fits there fits anywhere


def place_labels(dots: list[dict]) -> None:
    """Give every dot an offset (`dx`, `dy`, px) for its number, clear of the others."""
    width, height = _NARROW
    spots = [(dot["x"] / 100 * width, dot["y"] / 100 * height) for dot in dots]
    taken: list[tuple[float, float]] = []
    for dot, (x, y) in zip(dots, spots, strict=True):

        def crowding(offset, x=x, y=y):
            at = (x + offset[0], y + offset[1])
            outside = not (8 < at[0] < width - 8 and 8 < at[1] < height - 8)
            near_dots = sum(_near(at, spot, 13, 13) for spot in spots)
            return (
                2 * sum(_near(at, t, 19, 15) for t in taken) + near_dots + 3 * outside
            )

        dot["dx"], dot["dy"] = min(_OFFSETS[1:], key=crowding)
        taken.append((x + dot["dx"], y + dot["dy"]))


def _near(first, second, width: float, height: float) -> bool:
    return abs(first[0] - second[0]) < width and abs(first[1] - second[1]) < height
