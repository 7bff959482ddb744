"""How a method's result responds to one of its options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ..common import (
    COLUMN,
    files_of,
    get_logger,
    lay_out,
    new_figure,
    paper_style,
    require,
    save_figure,
)
from ..common.charts import draw_response
from .differences import NONE
from .files import did_you_mean, flatten
from .loading import load_results
from .numbers import SHARE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = get_logger(__name__)


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
        out: The picture; by default ``sweep_<option>`` in the results folder, as PNG, SVG
            and PDF.

    Returns:
        The picture's path. Points are means over seeds, bars sample standard deviations.

    Raises:
        ValueError: Fewer than two finished cells have different values of the option, or
            there is no such task or method.
        ModuleNotFoundError: matplotlib is not installed.
    """
    require("matplotlib", "The plot of a sweep")
    cells = load_results(folder, NONE).query("status == 'done'")
    methods = sorted(set(cells["method"]))
    if method and method not in methods:
        hint = did_you_mean(method, methods)
        raise ValueError(f"There is no method '{method}'; methods: {methods}.{hint}")
    chosen = cells[cells["method"] == method] if method else cells
    points = sweep_points(chosen, option, task)
    if points[option].nunique() < 2:
        configs = (record["config"] or {} for record in cells["record"])
        names = (name for config in configs for name, _ in flatten(config))
        raise ValueError(
            f"{folder} has fewer than two finished cells with different numbers for the"
            f" option '{option}'.{did_you_mean(option, sorted(set(names)))}"
        )
    if logarithmic and not (points[option] > 0).all():
        log.warning("%s: a logarithmic axis leaves out values of 0 and below", option)
    record = cells["record"].iloc[0]
    own = record.get("metrics", {})
    metric = own.get(task, SHARE) if own else record["metric"]
    title = f"{task or 'average'} {metric}"
    with paper_style():
        figure = _draw(points, option, title, logarithmic)
        files = files_of(Path(folder) / f"sweep_{option}")
        if out:
            files = {Path(out).suffix[1:] or "png": Path(out)}
            Path(out).parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, files)
    return next(iter(files.values()))


def sweep_points(
    cells: pd.DataFrame, option: str, task: str | None = None
) -> pd.DataFrame:
    """``line``, the option's value and ``result`` of every cell that has the option.

    A line is named by the other changed options.
    """
    points = []
    for record in cells["record"]:
        value = dict(flatten(record["config"] or {})).get(option)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if task not in (None, *record["tasks"]):
            tasks = list(record["tasks"])
            raise ValueError(f"There is no task '{task}'; tasks: {tasks}.")
        numbers = record["tasks"][task] if task else record["average"]
        others = {k: v for k, v in flatten(record["overrides"]) if k != option}
        text = ", ".join(f"{k}={v}" for k, v in others.items())
        line = f"{record['method']} ({text})" if text else record["method"]
        if (result := numbers[record["metric"]]) is None:
            raise ValueError(
                "Tasks with metrics of their own have an average beside the row experts"
                " only: run experts in the same folder, or give a task."
            )
        points.append((line, value, result))
    return pd.DataFrame(points, columns=["line", option, "result"])


def _draw(points: pd.DataFrame, option: str, metric: str, logarithmic: bool) -> Figure:
    found = points.groupby(["line", option], sort=False)["result"].agg(["mean", "std"])
    candidates = [
        {
            "line": line,
            "options": {option: value},
            "mean": numbers["mean"],
            "standard_error": numbers["std"],
            "dropped": False,
        }
        for (line, value), numbers in found.fillna(0).iterrows()
    ]
    figure = new_figure(1.3 * COLUMN, COLUMN)
    axes = figure.add_subplot()
    draw_response(axes, {"candidates": candidates, "score": metric, "chosen": None})
    axes.set_xscale("log" if logarithmic else "linear")
    return lay_out(figure)
