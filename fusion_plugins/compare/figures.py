"""The figures of a comparison; None where there are no numbers for one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..awd.report import draw_cosines
from ..common import COLUMN, new_figure
from ..common.charts import HeatMap, draw_coefficients, draw_response
from .columns import MERGE
from .looks import Look, Looks, add_legend, short_tasks
from .numbers import Spread
from .results import Comparison, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MOST_POINTS = 150  # per line; more than a column of paper shows
SHORTEST = 0.01  # seconds; what is faster is drawn here, a logarithm needs a start

Lines = dict[int, pd.Series]  # seed -> values by step


def _averages(comparison: Comparison) -> list[tuple[Row, Spread]]:
    found = ((row, comparison.average(row)) for row in comparison.finished)
    return [(row, spread) for row, spread in found if spread and spread.finite]


def _unit(comparison: Comparison) -> str:
    return f"{comparison.measure} ({comparison.scale.unit})".removesuffix(" ()")


def draw_time(comparison: Comparison, looks: Looks) -> Figure | None:
    from matplotlib.ticker import FuncFormatter

    timed = [
        (row, average, seconds)
        for row, average in _averages(comparison)
        if not row.is_reference and (seconds := MERGE.spread(row)) and seconds.finite
    ]
    if not timed:
        return None
    factor = comparison.scale.factor
    figure = new_figure(COLUMN, 2.4)
    axes = figure.add_subplot()
    for row, average in _averages(comparison):
        if row.is_reference:
            look = looks[row.number]
            axes.axhline(average.mean * factor, gid=look.group, **look.line)
    for row, average, seconds in timed:
        at = max(seconds.mean, SHORTEST), average.mean * factor
        error = (average.deviation or 0) * factor
        axes.errorbar(*at, error, gid=looks[row.number].group, **looks[row.number].dot)
    axes.set(
        xscale="log", xlabel="seconds to merge", ylabel=f"average {_unit(comparison)}"
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter("")
    add_legend(figure, [row for row, _ in _averages(comparison)], looks)
    return figure


def draw_differences(
    comparison: Comparison, looks: Looks, baseline: Row | None
) -> Figure | None:
    merged = [row for row in comparison.finished if not row.is_reference]
    rows = [row for row in merged if row is not baseline]
    if baseline is None or not rows:
        return None
    names = ["average", *comparison.tasks]
    base = _means(comparison, baseline)
    if np.isnan(base).all():
        return None
    figure = new_figure(COLUMN, 0.5 + 0.22 * len(names))
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        lane = np.arange(len(names)) + 0.7 * ((place + 0.5) / len(rows) - 0.5)
        look = looks[row.number]
        axes.plot(_means(comparison, row) - base, lane, gid=look.group, **look.dot)
    axes.axvline(0, **looks[baseline.number].line)
    axes.axhline(0.5, color="k", lw=0.6)
    axes.set_yticks(range(len(names)), ["average", *short_tasks(comparison.tasks)])
    xlabel = f"{_unit(comparison)} minus {looks[baseline.number].name}"
    axes.set(ylim=(len(names) - 0.5, -0.5), xlabel=xlabel)
    add_legend(figure, rows, looks)
    return figure


def _means(comparison: Comparison, row: Row) -> np.ndarray:
    spreads = [comparison.average(row)]
    spreads += [comparison.averaged(row, task) for task in comparison.tasks]
    means = [spread.mean if spread else np.nan for spread in spreads]
    return np.array(means) * comparison.scale.factor


def draw_responses(comparison: Comparison, looks: Looks) -> Figure | None:
    rows = [(row, row.artifacts("selection")) for row in comparison.finished]
    found = [(row, saved[0][1]) for row, saved in rows if saved]
    if not found:
        return None
    figure = new_figure(COLUMN, 2.6 * len(found))
    stacked = figure.subplots(len(found), squeeze=False)[:, 0]
    for axes, (row, record) in zip(stacked, found, strict=True):
        draw_response(axes, record)
        axes.set_title(looks[row.number].name)
    return figure


def coefficients_of(row: Row) -> dict[str, Any] | None:
    """`tasks`, `keys` and `values` (tasks, layers), the mean over seeds; None without."""
    saved = [artifact for _, artifact in row.artifacts("coefficients")]
    if not saved:
        return None
    tasks, keys = saved[0]["tasks"], saved[0]["keys"]
    alike = [a["values"] for a in saved if (a["tasks"], a["keys"]) == (tasks, keys)]
    values = np.atleast_2d(np.asarray(alike, dtype=np.float64).mean(axis=0))
    if not values.size or not np.isfinite(values).all():
        return None
    return {"tasks": tasks, "keys": keys, "values": values}


def draw_all_coefficients(comparison: Comparison, looks: Looks) -> Figure | None:
    maps = []
    for row in comparison.finished:
        if saved := coefficients_of(row):
            look, tasks = looks[row.number], short_tasks(saved["tasks"])
            values = saved["values"]
            maps.append(HeatMap(look.name, tasks, saved["keys"], values, look.group))
    return draw_coefficients(maps) if maps else None


def draw_all_cosines(comparison: Comparison, looks: Looks) -> Figure | None:
    """Before once for each pool, after for each method; of the first seeds."""
    matrices: dict[str, np.ndarray] = {}
    tasks: list[str] = []
    for row in comparison.finished:
        name = looks[row.number].name
        for _, saved in row.artifacts("cosines")[:1]:
            tasks = tasks or saved["tasks"]
            if saved["tasks"] != tasks:
                continue
            before, after = (np.asarray(saved[k], float) for k in ("before", "after"))
            known = [m for t, m in matrices.items() if t.startswith("before")]
            if not any(np.allclose(before, matrix, atol=1e-4) for matrix in known):
                matrices[f"before {name}" if known else "before"] = before
            matrices[name] = after
    return draw_cosines(short_tasks(tasks), matrices) if matrices else None


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
        band = shown.index, shown.min(axis=1), shown.max(axis=1)
        style = {"color": look.line["color"], "alpha": 0.2, "lw": 0}
        axes.fill_between(*band, **style, gid=look.group)


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
