"""Training curves: one small chart per method and series, one line per seed."""

from __future__ import annotations

import pandas as pd

from ..results import Comparison
from .axes import Axis, linear_axis

MOST_POINTS = 240  # per line; more than a screen shows


def training_curves(comparison: Comparison) -> list[dict]:
    """Every method that kept a history, with one chart per series of numbers.

    Single steps see one batch, often of one task, and jump: they are drawn thin, with
    their running mean over whole turns of the tasks on top.
    """
    found = []
    for row in comparison.finished:
        histories = {s: _numbers(history) for s, history in row.artifacts("history")}
        names = dict.fromkeys(name for h in histories.values() for name in h)
        panels = [_panel(name, histories, len(comparison.tasks)) for name in names]
        if any(panels):
            found.append({"row": row, "panels": list(filter(None, panels))})
    return found


def _numbers(history: dict) -> pd.DataFrame:
    """The series over the steps; what is no finite number is missing."""
    frame = pd.DataFrame(history).apply(pd.to_numeric, errors="coerce")
    finite = frame.replace([float("inf"), float("-inf")], float("nan"))
    return finite.set_index("step")


def _panel(name: str, histories: dict[int, pd.DataFrame], tasks: int) -> dict | None:
    lines = {s: h[name].dropna() for s, h in histories.items() if name in h}
    lines = {seed: line for seed, line in lines.items() if len(line)}
    if not lines:
        return None
    every = pd.concat(lines.values())
    axes = linear_axis(every.index, snug=True), linear_axis(every, bins=4)
    window = _window(max(map(len, lines.values())), tasks)
    return {
        "name": name,
        "window": window,
        "x_axis": axes[0],
        "y_axis": axes[1],
        "lines": [
            _line(index, seed, line, window, axes)
            for index, (seed, line) in enumerate(lines.items())
        ],
    }


def _window(steps: int, tasks: int) -> int:
    """Steps per running mean: a twelfth of the run in whole turns; 1 in short runs."""
    turns = max(1, round(steps / 12 / tasks))
    return turns * tasks if steps >= 4 * turns * tasks else 1


def _line(
    index: int, seed: int, line: pd.Series, window: int, axes: tuple[Axis, Axis]
) -> dict:
    means = running_mean(line, window)
    return {
        "style": index % 6,
        "path": _path(thin(means), *axes),
        "raw": _path(thin(line), *axes) if window > 1 else None,
        "text": f"seed {seed}: {means.iloc[0]:.3g} to {means.iloc[-1]:.3g}",
    }


def _path(line: pd.Series, x_axis: Axis, y_axis: Axis) -> str:
    places = ((x_axis.place(x), 100 - y_axis.place(y)) for x, y in line.items())
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in places)


def running_mean(line: pd.Series, window: int) -> pd.Series:
    """Mean of every `window` points in a row, at the middle of their steps."""
    if not 1 < window <= len(line):
        return line
    steps = line.index.to_series()
    middles = (steps.shift(window - 1) + steps) / 2
    return line.rolling(window).mean().set_axis(middles).iloc[window - 1 :]


def thin(line: pd.Series) -> pd.Series:
    """At most `MOST_POINTS` of them, evenly, and the last one."""
    step = -(-len(line) // MOST_POINTS)
    last = (len(line) - 1) % step > 0
    return pd.concat([line[::step], line[-1:]]) if last else line[::step]
