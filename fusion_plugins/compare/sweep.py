"""How a method's result responds to one of its options."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..common import require
from .differences import NONE
from .files import flatten
from .loading import load_results
from .methods import did_you_mean


def plot_sweep(
    folder: str | Path,
    option: str,
    *,
    method: str | None = None,
    task: str | None = None,
    logarithmic: bool = False,
    out: str | Path | None = None,
) -> Path:
    """Draw one line for each setting of the other options that were changed.

    Args:
        folder: The results folder.
        option: Dotted name of a numeric method option, as ``base.scaling_factor``.
        method: Only this method's cells.
        task: A task's main metric instead of the average.
        logarithmic: A logarithmic axis for the option.
        out: The picture; ``sweep_<option>.png`` in the results folder by default.

    Returns:
        The picture's path. Points are means over seeds, bars sample standard deviations.

    Raises:
        ValueError: Fewer than two finished cells have different values of the option, or
            there is no such task.
        ModuleNotFoundError: matplotlib is not installed.
    """
    require("matplotlib", "The plot of a sweep")
    cells = load_results(folder, NONE).query("status == 'done'")
    points = sweep_points(
        cells[cells["method"] == method] if method else cells, option, task
    )
    if points[option].nunique() < 2:
        names = (name for r in cells["record"] for name, _ in flatten(r["config"]))
        raise ValueError(
            f"{folder} has fewer than two finished cells with different numbers for the"
            f" option '{option}'.{did_you_mean(option, sorted(set(names)))}"
        )
    path = Path(out) if out else Path(folder) / f"sweep_{option}.png"
    title = f"{task or 'average'} {cells['record'].iloc[0]['metric']}"
    _draw(points, option, title, logarithmic, path)
    return path


def sweep_points(
    cells: pd.DataFrame, option: str, task: str | None = None
) -> pd.DataFrame:
    """``line``, the option's value and ``result`` of every cell that has the option.

    A line is named by the other changed options.
    """
    points = []
    for record in cells["record"]:
        value = dict(flatten(record["config"])).get(option)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if task not in (None, *record["tasks"]):
            tasks = list(record["tasks"])
            raise ValueError(f"There is no task '{task}'; tasks: {tasks}.")
        numbers = record["tasks"][task] if task else record["average"]
        others = {k: v for k, v in flatten(record["overrides"]) if k != option}
        text = ", ".join(f"{k}={v}" for k, v in others.items())
        line = f"{record['method']} ({text})" if text else record["method"]
        points.append((line, value, numbers[record["metric"]]))
    return pd.DataFrame(points, columns=["line", option, "result"])


def _draw(
    points: pd.DataFrame, option: str, metric: str, logarithmic: bool, path: Path
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for label, line in points.groupby("line", sort=False):
        found = line.groupby(option)["result"].agg(["mean", "std"]).fillna(0)
        axes.errorbar(
            found.index, found["mean"], found["std"], marker="o", capsize=3, label=label
        )
    axes.set(xlabel=option, ylabel=metric, xscale="log" if logarithmic else "linear")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
