"""Pictures: one style, a colour for each method's name, files as PNG, SVG and PDF.

matplotlib is imported on use: it is slow to import, and may be missing.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from . import how_to_get
from .logging import get_logger

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = get_logger(__name__)

STYLE = Path(__file__).with_name("paper.mplstyle")
COLUMN, PAGE = 3.4, 6.9  # inches: a column of a two-column paper, and both
SEQUENTIAL, DIVERGING = "cividis", "PuOr_r"  # readable with any colour vision
FORMATS = ("png", "svg", "pdf")
_UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}  # the same each time

GREY = "757d8c"
REFERENCES = ("pretrained", "experts")  # grey
# The first in each place of the style's cycle; further names share them.
_FIRST = "task_arithmetic awd adamerging ties_merging tinting_pp simple_average".split()
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
        # Names may be in any script.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def lay_out(figure: Figure) -> Figure:
    """Give a whole figure its final layout: once, not again for each file."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def save_figure(figure: Figure, files: Mapping[str, Path | BinaryIO]) -> None:
    """Write a figure: ``png``, ``svg`` or ``pdf`` -> where to."""
    for kind, file in files.items():
        figure.savefig(file, format=kind, metadata=_UNDATED.get(kind))


def files_of(path: Path) -> dict[str, Path]:
    """PNG, SVG and PDF of a picture whose path has no suffix."""
    return {kind: path.with_name(f"{path.name}.{kind}") for kind in FORMATS}


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
        for name, draw in pictures.items():
            save_figure(lay_out(draw()), files_of(folder / name))
    return [file for name in pictures for file in files_of(folder / name).values()]
