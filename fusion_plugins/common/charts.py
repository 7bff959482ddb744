"""Charts that more than one room draws: coefficients, responses to an option.

They take plain numbers, so that results read from files are drawn as fresh ones are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import DIVERGING, PAGE, SEQUENTIAL, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class HeatMap:
    """Merging coefficients of one method.

    Attributes:
        title: Of its panel.
        tasks, layers: Names of rows and columns.
        values: (tasks, layers).
        group: Name of the panel in an SVG file.
    """

    title: str
    tasks: Sequence[str]
    layers: Sequence[str]
    values: np.ndarray
    group: str | None = None


def draw_coefficients(maps: Sequence[HeatMap]) -> Figure:
    """A panel for each, tasks x layers from input to output, on one shared scale."""
    across = min(len(maps), 2)
    down = -(-len(maps) // across)
    height = max(0.1 * max(len(found.tasks) for found in maps), 0.9) + 0.45
    figure = new_figure(PAGE, down * height + 0.4)
    panels = figure.subplots(down, across, squeeze=False)
    low, high, colours = coefficient_range([found.values for found in maps])
    for axes, found in zip(panels.flat, maps, strict=False):
        image = axes.imshow(
            found.values,
            colours,
            aspect="auto",
            vmin=low,
            vmax=high,
            interpolation="none",
        )
        axes.set_gid(found.group)
        axes.set_title(found.title)
        axes.set_yticks(range(len(found.tasks)), found.tasks, size=5.5)
        starts = block_starts(found.layers)
        axes.set_xticks(list(starts.values()), list(starts), size=5.5)
        axes.grid(False)
    for axes in panels.flat[len(maps) :]:
        axes.set_visible(False)
    figure.supxlabel("block of the model", size=7)
    figure.colorbar(image, ax=panels, aspect=30, label="coefficient")
    return figure


def coefficient_range(values: Sequence[Any]) -> tuple[float, float, str]:
    """Ends of the scale, and its colours.

    As far below 0 as above where some are below 0; else from 0, or from the smallest
    where all are so large that they would look alike.
    """
    every = np.concatenate([np.ravel(part) for part in values])
    largest = float(np.abs(every).max()) or 1.0
    smallest = float(every.min())
    if smallest < 0:
        return -largest, largest, DIVERGING
    alike = 0.5 * largest < smallest < 0.99 * largest
    return smallest if alike else 0.0, largest, SEQUENTIAL


def block_starts(layers: Sequence[str]) -> dict[str, int]:
    """Number of every block of the model -> its first column; at most 13.

    Without numbers in the names, some columns are counted instead.
    """
    starts: dict[str, int] = {}
    for column, layer in enumerate(layers):
        if found := re.search(r"(?:^|\.)(\d+)\.", layer):
            starts.setdefault(found[1], column)
    if len(starts) < 2:
        columns = range(0, len(layers), max(1, len(layers) // 8))
        starts = {str(column): column for column in columns}
    return dict(list(starts.items())[:: -(-len(starts) // 13)])


def draw_response(axes: Axes, record: Mapping[str, Any]) -> None:
    """The score over the option with most values; the choice is a star.

    Args:
        axes: Where to.
        record: `score`, the axis's name; `candidates` with `options`, `mean`,
            `standard_error` and `dropped`; `chosen`, the options that won, or None. A
            candidate's `line` names the line that it is on; by default its other options.
    """
    candidates = record["candidates"]
    every = [candidate["options"] for candidate in candidates]
    counts = {name: len({str(o[name]) for o in every}) for name in every[0]}
    # Of equal ones the last, which is the scaling.
    option = max(reversed(counts), key=counts.__getitem__)
    numeric = {type(o[option]) for o in every} <= {int, float}
    lines: dict[str, list[Mapping]] = {}
    for candidate in candidates:
        others = {k: v for k, v in candidate["options"].items() if k != option}
        lines.setdefault(candidate.get("line", described(others)), []).append(candidate)

    def place(candidate: Mapping) -> Any:
        value = candidate["options"][option]
        return value if numeric else str(value)

    for label, line in lines.items():
        _draw_line(axes, sorted(line, key=place) if numeric else line, place, label)
    for best in (c for c in candidates if c["options"] == record["chosen"]):
        axes.plot(
            place(best), best["mean"], "*", ms=12, c="k", label="chosen", zorder=4
        )
    axes.set(xlabel=option, ylabel=record["score"])
    axes.legend()


def _draw_line(axes: Axes, line: list[Mapping], place: Any, label: str) -> None:
    x, y = [place(c) for c in line], [c["mean"] for c in line]
    errors = [c["standard_error"] for c in line]
    bars = axes.errorbar(x, y, errors, marker="o", label=label or None)
    hollow = [i for i, candidate in enumerate(line) if candidate["dropped"]]
    if hollow:
        axes.set_title("hollow: dropped early")
    places, heights = [x[i] for i in hollow], [y[i] for i in hollow]
    axes.plot(places, heights, "o", mfc="w", c=bars.lines[0].get_color(), zorder=3)


def described(settings: Mapping[str, Any]) -> str:
    """Settings as people write them."""
    return ", ".join(f"{name}={value}" for name, value in settings.items())
