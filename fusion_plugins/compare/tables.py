"""The summary as text: terminal, CSV, Markdown, LaTeX."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from .summary import Number, Row, Summary

_NOTHING = "-"


@dataclass(frozen=True)
class Grid:
    """A table as plain cells: a heading, rows, and notes below.

    Attributes:
        heading: Column names.
        rows: (label, cells); cells is one text for a failed row.
        published: Rows of published numbers, as `rows`.
        notes: Sentences below the table.
    """

    heading: list[str]
    rows: list[tuple[str, list[str] | str]]
    published: list[tuple[str, list[str]]]
    notes: list[str]


def make_grid(summary: Summary, plus_minus: str = " ± ") -> Grid:
    """Lay the summary out; numbers are rounded here and nowhere else."""
    columns = [*summary.tasks, "average", "of experts", "merge s", "peak MiB", "added"]
    rows = [(row.label, _cells(row, summary, plus_minus)) for row in summary.rows]
    return Grid(
        ["method", *columns],
        rows,
        list(_published_rows(summary, len(columns))),
        list(_notes(summary)),
    )


def _cells(row: Row, summary: Summary, plus_minus: str) -> list[str] | str:
    if not row.seeds:
        return f"failed: {row.errors[0]}" if row.errors else "failed"
    scale, digits = (100, 1) if summary.percent else (1, 4)

    def value(number: Number | None) -> str:
        return _text(number, scale, digits, plus_minus)

    return [
        *(value(row.tasks.get(task)) for task in summary.tasks),
        value(row.average),
        _text(row.normalised, 100, 1, plus_minus),
        _text(row.merge_seconds, 1, 1, plus_minus),
        _text(row.memory_mib and Number(row.memory_mib.mean), 1, 0, plus_minus),
        _NOTHING if row.added_parameters is None else f"{row.added_parameters:,}",
    ]


def _text(number: Number | None, scale: float, digits: int, plus_minus: str) -> str:
    if number is None:
        return _NOTHING
    text = f"{scale * number.mean:.{digits}f}"
    if number.spread is None:
        return text
    return f"{text}{plus_minus}{scale * number.spread:.{digits}f}"


def _published_rows(summary: Summary, columns: int) -> Iterator[tuple[str, list[str]]]:
    for row in (summary.published or {}).get("rows") or ():
        tasks = row.get("tasks") or {}
        cells = [_given(tasks.get(task)) for task in summary.tasks]
        cells.append(_given(row.get("average")))
        rest = [_NOTHING] * (columns - len(cells))
        yield f"{row['label']} (published)", cells + rest


def _given(number: float | None) -> str:
    return _NOTHING if number is None else f"{number:.1f}"


def _notes(summary: Summary) -> Iterator[str]:
    unit = " in percent" if summary.percent else ""
    direction = "" if summary.higher_is_better else "; lower is better"
    yield f"{summary.metric or 'No metric'}{unit}{direction}."
    if any(row.average and row.average.spread is not None for row in summary.rows):
        yield "Mean and sample standard deviation over seeds."
    for row in summary.rows:
        for error in row.errors:
            yield f"Failed: {row.label}, {error}"
    published = summary.published
    if published:
        yield f"Published numbers: {published['source']}."
        yield f"Their checkpoints: {published['checkpoints']}."
        yield from (f"Differs: {text}." for text in published.get("differs") or ())


_COSTS = 3  # columns of make_grid that are not results


def terminal_tables(summary: Summary, width: int) -> list[Table]:
    """Results, then costs, for rich's console.

    Args:
        summary: What to show.
        width: Of the console, in characters; tasks that do not fit are left out.
    """
    grid = make_grid(summary)
    tasks = range(1, 1 + len(summary.tasks))
    shown = [i for i in range(1, len(grid.heading) - _COSTS)]
    notes = list(grid.notes)
    if _width(grid, shown) > width:
        shown = [i for i in shown if i not in tasks]
        notes.append("Every task: see results.md, or use a wider terminal.")
    results = _terminal_table(grid, shown, [*grid.rows, *grid.published])
    results.title = Text(summary.title)
    results.caption = Text("\n".join(notes), justify="left")
    costs = range(len(grid.heading) - _COSTS, len(grid.heading))
    done = [row for row in grid.rows if isinstance(row[1], list)]
    return [results, _terminal_table(grid, costs, done)]


def _width(grid: Grid, shown: Sequence[int]) -> int:
    """Characters needed; method names may wrap, numbers may not."""
    rows = [cells for _, cells in grid.rows + grid.published if isinstance(cells, list)]
    columns = [[grid.heading[i], *(cells[i - 1] for cells in rows)] for i in shown]
    return 16 + sum(1 + max(map(len, column)) for column in columns)


def _terminal_table(
    grid: Grid, shown: Sequence[int], rows: Sequence[tuple[str, list[str] | str]]
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("method", overflow="fold")
    for index in shown:
        table.add_column(Text(grid.heading[index]), justify="right", no_wrap=True)
    for number, (label, cells) in enumerate(rows):
        if isinstance(cells, str):
            table.add_row(Text(label), Text("failed", style="red"))
        else:
            table.add_row(Text(label), *(Text(cells[i - 1]) for i in shown))
        if number + 1 == len(grid.rows):
            table.add_section()
    return table


def markdown_table(summary: Summary) -> str:
    """A table of GitHub's Markdown, notes as a list."""
    grid = make_grid(summary)
    lines = [f"# {_markdown(summary.title)}", ""]
    lines.append(_line(map(_markdown, grid.heading)))
    lines.append(_line(["---"] + ["---:"] * (len(grid.heading) - 1)))
    for label, cells in [*grid.rows, *grid.published]:
        failed = isinstance(cells, str)
        shown = ["failed"] + [""] * (len(grid.heading) - 2) if failed else cells
        lines.append(_line(map(_markdown, [label, *shown])))
    return "\n".join([*lines, "", *(f"- {_markdown(note)}" for note in grid.notes), ""])


def _line(cells: Iterator[str] | Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    for character in "\\`*_|<>[]":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
