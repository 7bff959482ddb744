"""How rows look in pictures and on the page: a colour, a marker, a dash, a short name."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..common import CYCLE
from .loading import REFERENCES
from .results import Comparison, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY = "#757d8c"  # of references
# The first in each place of the style's cycle; further names share them.
_FIRST = "task_arithmetic awd adamerging ties_merging tinting_pp simple_average".split()
_MARKERS, _DASHES = "osD^vPX*<>", ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1, 2)))


def colour_number(method: str) -> int:
    """Place of a method's colour in the style's cycle: the same wherever it is drawn."""
    if method in _FIRST:
        return _FIRST.index(method)
    return zlib.crc32(method.encode()) % len(CYCLE)


def colour_of(method: str) -> str:
    """The colour that pictures give a method."""
    return GREY if method in REFERENCES else CYCLE[colour_number(method)]


@dataclass(frozen=True)
class Look:
    """One row's.

    The colour is fixed by the method's name; among rows of one colour, `place` tells them
    apart by marker and dash.
    """

    row: Row
    name: str  # a short one
    place: int

    @property
    def group(self) -> str:
        """Its name in SVG files."""
        return f"m{self.row.number}"

    @property
    def classes(self) -> str:
        """Of the page's style sheet."""
        number = colour_number(self.row.method)
        return "reference" if self.row.is_reference else f"c{number}"

    @property
    def line(self) -> dict[str, Any]:
        """Of matplotlib's lines."""
        dash = _DASHES[self.place % len(_DASHES)]
        return {"color": colour_of(self.row.method), "linestyle": dash}

    @property
    def dot(self) -> dict[str, Any]:
        """Of matplotlib's lines that are dots; references stay lines."""
        marks = {"marker": _MARKERS[self.place % len(_MARKERS)], "linestyle": "none"}
        return self.line if self.row.is_reference else self.line | marks


Looks = dict[int, Look]


def looks_of(comparison: Comparison) -> Looks:
    """Row number -> its look."""
    seen: Counter[str] = Counter()
    looks = {}
    rows = comparison.listed()
    for row, name in zip(rows, short_names([row.label for row in rows]), strict=True):
        colour = colour_of(row.method)
        looks[row.number] = Look(row, name, seen[colour])
        seen[colour] += 1
    return looks


def add_legend(
    figure: Figure, rows: Sequence[Row], looks: Looks, kind: str = "dot"
) -> None:
    """Below the figure, in as many columns as the names leave room for.

    `kind` is the property of a look that shows it.
    """
    from matplotlib.lines import Line2D

    shown = [looks[row.number] for row in rows]
    names = [look.name for look in shown]
    handles = [Line2D([], [], **getattr(look, kind)) for look in shown]
    columns = 2 if max(map(len, names)) < 24 else 1
    lines = -(-len(names) // columns)
    figure.set_figheight(figure.get_figheight() + 0.13 * lines + 0.05)
    legend = figure.legend(
        handles, names, loc="outside lower left", ncols=columns, frameon=False
    )
    for look, *parts in zip(shown, legend.get_texts(), legend.get_lines(), strict=True):
        for part in parts:
            part.set_gid(look.group)


# What papers call methods and tasks.
_KNOWN = dict(
    entry.split("=")
    for entry in (
        "simple_average=Average,task_arithmetic=Task Arithmetic,ties_merging=TIES,awd=AWD,"
        "adamerging=AdaMerging,tinting=Tinting,tinting_pp=Tinting++,dare=DARE,wudi=WUDI,"
        "isotropic_merging/iso_c=Iso-C,isotropic_merging/iso_cts=Iso-CTS,doge_ta=DOGE-TA,"
        "task_singular_vector=TSV-M,singular_value_calibration=SVC,"
        "task_singular_vector/TaskSingularVectorMerging=TSV-M,"
        "sun397=SUN397,stanford-cars=Cars,stanford_cars=Cars,resisc45=RESISC45,"
        "eurosat=EuroSAT,svhn=SVHN,gtsrb=GTSRB,mnist=MNIST,dtd=DTD,pcam=PCAM,"
        "oxford_flowers102=Flowers,fer2013=FER2013,oxford-iiit-pet=Pets,stl10=STL10,"
        "cifar10=CIFAR10,cifar100=CIFAR100,food101=Food101,fashion_mnist=F-MNIST,"
        "emnist_letters=EMNIST,kmnist=KMNIST,rendered-sst2=R-SST2"
    ).split(",")
)


def short_names(
    names: Sequence[str], own: Mapping[str, str] | None = None, longest: int = 44
) -> list[str]:
    """As papers write methods and tasks; options stay.

    Where two would be called the same, both keep their whole names.

    Args:
        names: Labels of rows, or tasks.
        own: Name -> what to call it instead.
        longest: What is longer ends with dots.
    """
    known = _KNOWN | dict(own or {})
    short = [known.get(name) or _short(name, known) for name in names]
    short = [s if len(s) <= longest else f"{s[:longest - 1]}…" for s in short]
    counts = Counter(short)
    return [s if counts[s] == 1 else n for s, n in zip(short, names, strict=True)]


def _short(name: str, known: dict[str, str]) -> str:
    method, bracket, options = name.partition(" (")
    parts = dict.fromkeys(known.get(part, part) for part in method.split("/"))
    return known.get(method, "/".join(parts)) + bracket + options


short_tasks = partial(short_names, longest=24)  # at the side of a chart
