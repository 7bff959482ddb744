"""Training curves: a panel for each series of numbers, a line for each method."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from ..common import COLUMN, new_figure
from .looks import Look, Looks, add_legend
from .results import Comparison, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_POINTS = 150  # per line; more than a column of paper shows

Lines = dict[int, pd.Series]  # seed -> values by step


def draw_curves(comparison: Comparison, looks: Looks) -> Figure | None:
    """Means over seeds; bands reach from the lowest to the highest seed.

    Single steps see one batch, often of one task, and jump: lines are running means over
    whole turns of the tasks. None where no method kept a history.
    """
    panels: dict[str, dict[Row, Lines]] = {}
    for row in comparison.finished:
        histories = {s: _numbers(history) for s, history in row.artifacts("history")}
        for name in dict.fromkeys(name for h in histories.values() for name in h):
            lines = {s: h[name].dropna() for s, h in histories.items() if name in h}
            if lines := {seed: line for seed, line in lines.items() if len(line)}:
                panels.setdefault(name, {})[row] = lines
    if not panels:
        return None
    figure = new_figure(COLUMN, 1.5 * len(panels) + 0.4)
    stacked = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, (name, rows) in zip(stacked, panels.items(), strict=True):
        axes.set(ylabel=name)
        for row, lines in rows.items():
            _draw(axes, lines, len(comparison.tasks), looks[row.number])
    stacked[-1].set_xlabel("step")
    found = dict.fromkeys(row for rows in panels.values() for row in rows)
    add_legend(figure, list(found), looks, "line")
    return figure


def _draw(axes: Axes, lines: Lines, tasks: int, look: Look) -> None:
    window = _window(max(map(len, lines.values())), tasks)
    means = pd.DataFrame({s: running_mean(line, window) for s, line in lines.items()})
    shown = means[:: -(-len(means) // MOST_POINTS)]
    axes.plot(shown.index, shown.mean(axis=1), **look.line, gid=look.group)
    if len(lines) > 1:
        low, high = shown.min(axis=1), shown.max(axis=1)
        colour, group = look.line["color"], look.group
        axes.fill_between(
            shown.index, low, high, color=colour, alpha=0.2, lw=0, gid=group
        )


def _numbers(history: dict) -> pd.DataFrame:
    """The series over the steps; what is no finite number is missing."""
    frame = pd.DataFrame(history).apply(pd.to_numeric, errors="coerce")
    finite = frame.replace([float("inf"), float("-inf")], float("nan"))
    return finite.groupby("step").last()  # a resumed run may repeat steps


def _window(steps: int, tasks: int) -> int:
    """Steps per running mean: a twelfth of the run in whole turns; 1 in short runs."""
    turns = max(1, round(steps / 12 / tasks))
    return turns * tasks if steps >= 4 * turns * tasks else 1


def running_mean(line: pd.Series, window: int) -> pd.Series:
    """Mean of every `window` points in a row, at the middle of their steps."""
    if not 1 < window <= len(line):
        return line
    steps = line.index.to_series()
    middles = (steps.shift(window - 1) + steps) / 2
    return line.rolling(window).mean().set_axis(middles).iloc[window - 1 :]
