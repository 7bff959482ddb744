"""Pictures: one style, a colour for each method's name, files as PNG, SVG and PDF.

matplotlib is imported on use: it is slow to import, and may be missing.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from . import how_to_get
from .logging import get_logger

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = get_logger(__name__)

STYLE = Path(__file__).with_name("paper.mplstyle")
COLUMN, PAGE = 3.4, 6.9  # inches: a column of a two-column paper, and both
SEQUENTIAL, DIVERGING = "cividis", "PuOr_r"  # readable with any colour vision
_SAVED = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}

GREY = "757d8c"
REFERENCES = ("pretrained", "experts")  # grey
# The first in each place of the style's cycle; further names share them.
_FIRST = (
    "task_arithmetic",
    "awd",
    "adamerging",
    "ties_merging",
    "tinting_pp",
    "simple_average",
)
COLOURS = len(_FIRST)


def colour_number(method: str) -> int:
    """Place of a method's colour in the style's cycle: the same wherever it is drawn."""
    if method in _FIRST:
        return _FIRST.index(method)
    return zlib.crc32(method.encode()) % COLOURS


def colour_of(method: str) -> str:
    """The colour that pictures give a method; references are grey."""
    return f"#{GREY}" if method in REFERENCES else f"C{colour_number(method)}"


@contextmanager
def paper_style() -> Iterator[None]:
    """Figures made and saved inside look as the style file says."""
    from matplotlib import style

    with style.context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing from"
        )  # names of any script
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG, SVG and PDF; `path` has no suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it is laid out, once for all formats
    paths = [path.with_name(f"{path.name}.{suffix}") for suffix in _SAVED]
    for file, metadata in zip(paths, _SAVED.values(), strict=True):
        figure.savefig(file, metadata=metadata)
    return paths


def save_pictures(
    folder: Path, pictures: Mapping[str, Callable[[], Figure]], what: str
) -> list[Path]:
    """Draw and save pictures, or say in one warning how to get them.

    Args:
        folder: Where to.
        pictures: File name without suffix -> what draws it.
        what: They show, for the warning.

    Returns:
        The files; none where matplotlib is missing.
    """
    command = how_to_get("matplotlib")
    if command is not None:
        log.warning("There is no picture of %s: %s", what, command)
        return []
    with paper_style():
        return [
            file
            for name, draw in pictures.items()
            for file in save_figure(draw(), folder / name)
        ]
