"""All figures of a comparison with their captions, as files and for the page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..common import lay_out, paper_style, save_figure
from . import figures
from .figures import draw_curves
from .files import write_text
from .looks import looks_of
from .results import Comparison, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Name of the files and of the place on the page -> title, caption.
_TEXTS = {
    "time": (
        "Average {metric} against merge time",
        "Seconds to merge, without evaluation; means over seeds, bars: sample standard"
        " deviation.",
    ),
    "differences": (
        "Differences to {baseline}",
        "On each task, {metric} minus that of {baseline}; means over seeds.",
    ),
    "response": (
        "Selection without labels",
        "Score of every candidate; bars: standard error, star: chosen, hollow: dropped"
        " early.",
    ),
    "coefficients": (
        "Merging coefficients",
        "A row per task, a column per tensor from input to output, all on one scale. 0"
        " leaves a task vector out, 1 adds all of it. Means over seeds.",
    ),
    "cosines": (
        "Cosines between task vectors",
        "0: orthogonal, the tasks do not interfere. Once before merging, then after each"
        " method, with its first seed.",
    ),
    "curves": (
        "Training",
        "Means over seeds, running over whole turns of the tasks; bands: lowest to highest"
        " seed.",
    ),
}


@dataclass(frozen=True)
class Picture:
    """A figure with its name, title and caption."""

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
    """Every figure that there are numbers for; differences are to the `baseline`."""
    looks = looks_of(comparison)
    with paper_style():
        drawn = {
            "time": figures.draw_time(comparison, looks),
            "differences": figures.draw_differences(comparison, looks, baseline),
            "response": figures.draw_responses(comparison, looks),
            "coefficients": figures.draw_all_coefficients(comparison, looks),
            "cosines": figures.draw_all_cosines(comparison, looks),
            "curves": draw_curves(comparison, looks),
        }
        whole = {name: lay_out(figure) for name, figure in drawn.items() if figure}
    known = {"baseline": looks[baseline.number].name if baseline else ""}
    known["metric"] = comparison.measure
    return [
        Picture(name, title.format(**known), caption.format(**known), whole[name])
        for name, (title, caption) in _TEXTS.items()
        if name in whole
    ]


def save_all(pictures: Sequence[Picture], folder: Path) -> None:
    """Each as PNG, SVG and PDF."""
    folder.mkdir(exist_ok=True)
    for picture in pictures:
        path = folder / picture.name
        write_text(path.with_suffix(".svg"), picture.svg)
        with paper_style():
            files = {kind: path.with_suffix(f".{kind}") for kind in ("png", "pdf")}
            save_figure(picture.figure, files)


def baseline_of(comparison: Comparison) -> Row | None:
    """The row with which the others are compared.

    The one that ``compare.json`` names as `baseline`, by its label or method; else that
    of the tables, simple averaging, the pretrained model, or the first row with results.
    """
    rows = [row for row in comparison.listed() if row.cells]
    tables = comparison.baseline.label if comparison.baseline else None
    given = comparison.about.get("baseline"), tables
    for wanted in (*given, "simple_average", "pretrained"):
        for row in rows:
            if wanted in (row.label, row.method):
                return row
    return next(iter(rows), None)
