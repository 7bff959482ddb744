"""Tables on the terminal: narrow, with one rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from .results import Comparison
from .tables import (
    FAILED,
    Grid,
    TableOptions,
    make_grid,
    protocol,
    table_notes,
)

_NARROW = 15  # width that methods' names have at least before they wrap
_GAP = 2  # between columns
_STYLES = {0: "", 1: "bold", 2: "underline"}


def new_table(first: str, columns: Sequence[str]) -> Table:
    """An empty table; the first column may wrap, numbers may not."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first, overflow="fold")
    for title in columns:
        table.add_column(Text(title), justify="right", no_wrap=True)
    return table


def terminal_tables(
    comparison: Comparison, width: int, options: TableOptions | None = None
) -> list[Table | Text]:
    """For rich's console, the average first; what is too wide goes on in a table below."""
    grid = make_grid(comparison, options)
    grid.text = grid.text.map(lambda text: text.replace(" ± ", "±"))
    columns = sorted(grid.text.columns[1:], key="average".__ne__)
    shown = [_table(grid.part(part)) for part in _folded(grid, columns, width)]
    shown[0].title = Text(comparison.title)
    notes = [" ".join(protocol(comparison)), *table_notes(comparison)]
    return [*shown, Text("\n".join(notes))]


def _folded(grid: Grid, columns: Sequence[str], width: int) -> list[list[str]]:
    """Columns of parts that fit, each beside the first column.

    That one wraps where this makes fewer lines in all.
    """
    longest = {name: grid.text[name].map(len).max() for name in grid.text}
    titles = zip(columns, grid.headings(columns), strict=True)
    needed = {name: max(longest[name], len(title)) + _GAP for name, title in titles}

    def lines(names: int) -> int:
        wrapped = sum(-(-len(name) // names) for name in grid.text["method"])
        return wrapped * len(_parts(needed, width - names - _GAP))

    widths = range(min(_NARROW, longest["method"]), longest["method"] + 1)
    return _parts(needed, width - min(widths, key=lines) - _GAP)


def _parts(needed: Mapping[str, int], room: int) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for name, size in needed.items():
        if parts[-1] and sum(map(needed.__getitem__, parts[-1])) + size > room:
            parts.append([])
        parts[-1].append(name)
    return parts


def _table(grid: Grid) -> Table:
    table = new_table("method", grid.headings(grid.text.columns[1:]))
    lines = zip(grid.text.to_numpy(), grid.rank.to_numpy(), strict=True)
    for number, (cells, ranks) in enumerate(lines, start=1):
        styles = ["red" if cell == FAILED else "" for cell in cells]
        styles = [style or _STYLES[r] for style, r in zip(styles, ranks, strict=True)]
        table.add_row(*map(Text, cells, styles), end_section=number == grid.rows)
    return table
