"""What every room uses: options, logging, sample order, optional packages, FusionBench.

Among the optional packages is matplotlib: how all pictures look, and how they are saved.
It is imported on use, which takes its time.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Module that the core does without -> the extra that brings it.
EXTRAS = {
    "jinja2": "report",
    "matplotlib": "report",
    "open_clip": "openclip",
    "peft": "peft",
    "shtab": "completion",
    "sklearn": "demo",
    "torchvision": "torchvision",
}


class _RankZeroFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        from lightning_utilities.core.rank_zero import rank_zero_only

        return getattr(rank_zero_only, "rank", 0) in (None, 0)


def get_logger(name: str) -> logging.Logger:
    """A standard logger that is silent on every process but the first."""
    logger = logging.getLogger(name)
    if not any(isinstance(f, _RankZeroFilter) for f in logger.filters):
        logger.addFilter(_RankZeroFilter())
    return logger


def how_to_get(module: str) -> str | None:
    """The command that installs an optional package; None where it is installed."""
    if find_spec(module) is not None:
        return None
    return f"pip install 'fusion-plugins[{EXTRAS[module]}]'"


def require(module: str, purpose: str) -> None:
    """Raise ModuleNotFoundError, with the extra to install, before anything slow."""
    command = how_to_get(module)
    if command is not None:
        raise ModuleNotFoundError(f"{purpose} needs {module}: {command}.", name=module)


def lazy_exports(
    package: str, exports: Mapping[str, str]
) -> tuple[Callable[[str], Any], list[str]]:
    """`__getattr__` and `__all__` of a package that costs nothing to import.

    The exports are public name -> module that defines it, relative to the package.
    """

    def load(name: str) -> Any:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(exports[name], package), name)

    return load, sorted(exports)


#: Distinct with full colour vision, protanopia and deuteranopia.
CYCLE = ("#0862a8", "#e26f26", "#00664b", "#aa82c2", "#881b0b", "#3f26aa")
#: How pictures look; for your own: `matplotlib.style.use(STYLE)`.
STYLE: dict[str, Any] = {
    "axes.prop_cycle": f"cycler('color', {CYCLE})",
    "text.color": "#1b2130",
    "axes.labelcolor": "#1b2130",
    "axes.edgecolor": "#5a6478",
    "xtick.color": "#5a6478",
    "ytick.color": "#5a6478",
    "grid.color": "#e4e7ed",
    "legend.edgecolor": "#e4e7ed",
    "figure.facecolor": "#ffffff",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "text.parse_math": False,  # names hold $ and _
    "axes.unicode_minus": False,  # the other one brings the PDF a second font
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "errorbar.capsize": 2,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # whole fonts: publishers refuse the other kind
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "pictures",  # the same picture is the same file
}
COLUMN, PAGE = 3.4, 6.9  # inches: a column of a two-column paper, and both
SEQUENTIAL, DIVERGING = "cividis", "PuOr_r"  # readable with any colour vision
_UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}  # the same each time


@contextmanager
def paper_style() -> Iterator[None]:
    """Figures made and saved inside have the `STYLE`."""
    from matplotlib import style

    # Where figures are laid out by default, none can be without an engine (`lay_out`).
    settings = {**STYLE, "figure.constrained_layout.use": False}
    with style.context(settings), warnings.catch_warnings():
        # Names may be in any script.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def lay_out(figure: Figure) -> Figure:
    """Give a whole figure its final layout: once, not again for each file."""
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)  # as the first drawing would, without drawing
    # "none" would leave an engine that places nothing, and draw twice for each file.
    figure.set_layout_engine(None)
    return figure


def save_figure(figure: Figure, files: Mapping[str, Path | BinaryIO]) -> None:
    """Write a figure: ``png``, ``svg`` or ``pdf`` -> where to."""
    for kind, file in files.items():
        figure.savefig(file, format=kind, metadata=_UNDATED.get(kind))


def _render(figure: Figure, files: Mapping[str, Path]) -> None:
    save_figure(lay_out(figure), files)


def files_of(path: Path) -> dict[str, Path]:
    """PNG, SVG and PDF of a picture whose path has no suffix."""
    return {
        kind: path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg", "pdf")
    }


def save_pictures(
    folder: Path, pictures: Mapping[str, Callable[[], Figure]], what: str
) -> list[Path]:
    """Draw and save pictures, by file name without suffix; the files.

    Without matplotlib there are none: one warning says how to get pictures of `what`.
    """
    command = how_to_get("matplotlib")
    if command is not None:
        get_logger(__name__).warning("There is no picture of %s: %s", what, command)
        return []
    with paper_style():
        for name, draw in pictures.items():
            _render(draw(), files_of(folder / name))
    return [file for name in pictures for file in files_of(folder / name).values()]
