"""The figures of a comparison, for papers and for the page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.charts import HeatMap, draw_coefficients, draw_cosines, draw_response
from ..common.drawing import COLUMN, lay_out, new_figure, paper_style, save_figure
from .columns import MERGE
from .curves import draw_curves
from .files import write_text
from .looks import Look, add_legend, looks_of, short_tasks
from .numbers import Spread
from .results import Comparison, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHORTEST = 0.01  # seconds; what is faster is drawn here, a logarithm needs a start
Looks = dict[int, Look]


@dataclass(frozen=True)
class Picture:
    """One figure.

    Attributes:
        name: Of its files, and of its place on the page.
        title, caption: What it shows.
        figure: Of matplotlib.
    """

    name: str
    title: str
    caption: str
    figure: Figure

    @property
    def wide(self) -> bool:
        """It needs both columns of a paper."""
        return self.name in ("coefficients", "cosines")

    @property
    def open(self) -> bool:
        """The page shows it at first."""
        return self.name in ("time", "differences")

    @cached_property
    def svg(self) -> str:
        """The figure as an SVG file."""
        buffer = io.BytesIO()
        with paper_style():
            save_figure(self.figure, {"svg": buffer})
        return buffer.getvalue().decode("utf-8")


def draw_pictures(comparison: Comparison, baseline: Row | None) -> list[Picture]:
    """Every figure that there are numbers for.

    Args:
        comparison: The results.
        baseline: The row that differences are to.
    """
    metric = comparison.metric
    with paper_style():
        looks = looks_of(comparison)
        figures = {
            "time": _draw_time(comparison, looks),
            "differences": _draw_differences(comparison, looks, baseline),
            "response": _draw_responses(comparison, looks),
            "coefficients": _draw_coefficients(comparison, looks),
            "cosines": _draw_cosines(comparison, looks),
            "curves": draw_curves(comparison, looks),
        }
        whole = {name: lay_out(figure) for name, figure in figures.items() if figure}
    name = looks[baseline.number].name if baseline else ""
    texts = {
        "time": (
            f"Average {metric} against merge time",
            "Seconds to merge, without evaluation; means over seeds, bars: sample standard"
            " deviation.",
        ),
        "differences": (
            f"Differences to {name}",
            f"{metric.capitalize()} on each task minus that of {name}, means over seeds.",
        ),
        "response": (
            "Selection without labels",
            "Score of every candidate; bars: standard error, star: chosen, hollow: dropped early.",
        ),
        "coefficients": (
            "Merging coefficients",
            "A row per task, a column per tensor from input to output, all on one scale. 0"
            " leaves a task vector out, 1 adds all of it. Means over seeds.",
        ),
        "cosines": (
            "Cosines between task vectors",
            "0: orthogonal, the tasks do not interfere. Before merging once, then after"
            " each method, with its first seed.",
        ),
        "curves": (
            "Training",
            "Means over seeds, running over whole turns of the tasks; bands: lowest to"
            " highest seed.",
        ),
    }
    return [Picture(name, *texts[name], figure) for name, figure in whole.items()]


def save_all(pictures: Sequence[Picture], folder: Path) -> None:
    """Each as PNG, SVG and PDF."""
    folder.mkdir(exist_ok=True)
    for picture in pictures:
        path = folder / picture.name
        write_text(path.with_suffix(".svg"), picture.svg)
        with paper_style():
            files = {kind: path.with_suffix(f".{kind}") for kind in ("png", "pdf")}
            save_figure(picture.figure, files)


def baseline_of(comparison: Comparison, name: str | None = None) -> Row | None:
    """The row of this label or method, with which the others are compared.

    Unless named: simple averaging, else the pretrained model, else the first row.

    Raises:
        ValueError: There is no such row with results.
    """
    rows = [row for row in comparison.listed() if row.cells]
    for wanted in [name] if name else ["simple_average", "pretrained"]:
        for row in rows:
            if wanted in (row.label, row.method):
                return row
    if name:
        labels = [row.label for row in rows]
        raise ValueError(f"baseline is '{name}', expected one of {labels}.")
    return next(iter(rows), None)


def _averages(comparison: Comparison) -> list[tuple[Row, Spread]]:
    found = ((row, comparison.average(row)) for row in comparison.finished)
    return [(row, spread) for row, spread in found if spread and spread.finite]


def _unit(comparison: Comparison) -> str:
    return f"{comparison.metric} ({comparison.scale.unit})".removesuffix(" ()")


def _draw_time(comparison: Comparison, looks: Looks) -> Figure | None:
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


def _draw_differences(
    comparison: Comparison, looks: Looks, baseline: Row | None
) -> Figure | None:
    rows = [row for row in comparison.finished if not row.is_reference]
    rows = [row for row in rows if row is not baseline]
    if baseline is None or not rows:
        return None
    names = ["average", *comparison.tasks]
    base = _means(comparison, baseline)
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
    spreads += [comparison.task(row, task) for task in comparison.tasks]
    means = [spread.mean if spread else np.nan for spread in spreads]
    return np.array(means) * comparison.scale.factor


def _draw_responses(comparison: Comparison, looks: Looks) -> Figure | None:
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


def _draw_coefficients(comparison: Comparison, looks: Looks) -> Figure | None:
    found = [(row, coefficients_of(row)) for row in comparison.finished]
    maps = [
        HeatMap(
            looks[row.number].name,
            short_tasks(saved["tasks"]),
            saved["keys"],
            saved["values"],
            looks[row.number].group,
        )
        for row, saved in found
        if saved
    ]
    return draw_coefficients(maps) if maps else None


def _draw_cosines(comparison: Comparison, looks: Looks) -> Figure | None:
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
