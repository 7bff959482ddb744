"""The rows as DataFrames, and these as text: terminal, CSV, Markdown, LaTeX."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from .columns import (
    ADDED,
    EVALUATE,
    MERGE,
    OF_EXPERTS,
    Column,
    main_columns,
    memory_columns,
)
from .numbers import MISSING
from .results import Comparison, Row
from .verdicts import average_difference, verdicts

_NOTHING, FAILED = "-", "failed"
_COSTS = 3  # columns of text_table that are not results
_NAMES = 30  # width that methods' names have at most, if numbers need the rest


def text_table(comparison: Comparison) -> pd.DataFrame:
    """The table that people read: rows as listed, then published numbers.

    A failed row says so in its first cell; the others are empty. ``attrs["rows"]`` is how
    many rows were measured.
    """
    average, *tasks = main_columns(comparison)
    memory = memory_columns(comparison)[-1]
    columns = [*tasks, average, OF_EXPERTS, MERGE, memory, ADDED]
    titles = [*(c.title for c in columns[:-_COSTS]), "merge s", "peak MiB", "added"]
    failed = [FAILED] + [""] * (len(columns) - 1)
    lines = [
        [row.label, *([_written(c, row) for c in columns] if row.cells else failed)]
        for row in comparison.listed()
    ]
    published = [
        [f"{entry['label']} (published)", *_given(entry, comparison, len(columns))]
        for entry in comparison.published.get("rows") or ()
    ]
    table = pd.DataFrame([*lines, *published], columns=["method", *titles])
    table.attrs["rows"] = len(lines)
    return table


def _written(column: Column, row: Row) -> str:
    mean, deviation = column.mean(row).replace(MISSING, _NOTHING), column.deviation(row)
    mean += column.mark(row)
    return f"{mean} ± {deviation}" if deviation else mean


def _given(entry: dict, comparison: Comparison, columns: int) -> list[str]:
    tasks = entry.get("tasks") or {}
    values = [*map(tasks.get, comparison.tasks), entry.get("average")]
    cells = [_NOTHING if value is None else f"{value:.1f}" for value in values]
    return cells + [_NOTHING] * (columns - len(cells))


def table_notes(comparison: Comparison) -> Iterator[str]:
    """Sentences below the table; the first names the metric."""
    unit = " in percent" if comparison.scale.percent else ""
    direction = "" if comparison.higher_is_better else "; lower is better"
    metric = comparison.metric if comparison.finished else "No metric"
    yield f"{metric}{unit}{direction}."
    if any(len(row.cells) > 1 for row in comparison.rows):
        yield "Mean and sample standard deviation over seeds."
    for row in comparison.listed():
        yield from (f"Failed: {row.label}, {error}" for error in row.errors())
    published = comparison.published
    if "left_out" in published:
        yield f"Published numbers left out: {published['left_out']}."
    elif published:
        yield f"Published numbers: {published['source']}."
        yield f"Their checkpoints: {published['checkpoints']}."
        yield from (f"Differs: {text}." for text in published.get("differs") or ())
    yield from verdicts(comparison)


def terminal_tables(comparison: Comparison, width: int) -> list[Table | Text]:
    """For rich's console, the mean first; what is too wide goes on in a table below."""
    table, notes = text_table(comparison), list(table_notes(comparison))
    *tasks, average, share = table.columns[1:-_COSTS]
    failed = table["merge s"] == ""
    table.loc[failed, average], table.loc[failed, tasks] = FAILED, ""
    columns = ["method", average, *tasks, share, *table.columns[-_COSTS:]]
    parts = _folded(table[columns], width)
    shown = [_terminal_table(part, table.attrs["rows"]) for part in parts]
    shown[0].title = Text(comparison.title)
    return [*shown, Text("\n".join(notes))]


def _folded(results: pd.DataFrame, width: int) -> Iterator[pd.DataFrame]:
    """Parts of a table that fit, each with the first column, which may wrap."""
    titles = results.columns[1:]
    # Numbers may not wrap.
    needed = results[titles].map(len).max().clip(lower=titles.map(len)) + 1
    names = min(results["method"].map(len).max(), _NAMES) + 1
    part: list[str] = []
    for title in titles:
        if part and names + needed[part].sum() + needed[title] > width:
            yield results[["method", *part]]
            part = []
        part.append(title)
    yield results[["method", *part]]


def _terminal_table(frame: pd.DataFrame, rows: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("method", overflow="fold")
    for title in frame.columns[1:]:
        table.add_column(Text(title), justify="right", no_wrap=True)
    for number, cells in enumerate(frame.itertuples(index=False), start=1):
        styles = ["red" if cell == FAILED else "" for cell in cells]
        table.add_row(*map(Text, cells, styles), end_section=number == rows)
    return table


def markdown_table(comparison: Comparison) -> str:
    """A table of GitHub's Markdown, notes as a list."""
    table = text_table(comparison)
    rule = ["---"] + ["---:"] * (table.shape[1] - 1)
    lines = [list(map(_markdown, line)) for line in [table.columns, *table.to_numpy()]]
    lines.insert(1, rule)
    return "\n".join(
        [
            f"# {_markdown(comparison.title)}\n",
            *(f"| {' | '.join(line)} |" for line in lines),
            "",
            *(f"- {_markdown(note)}" for note in table_notes(comparison)),
            "",
        ]
    )


def _markdown(text: str) -> str:
    return " ".join(re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text).split())


def scalars(comparison: Comparison) -> dict[str, float]:
    """A number per method and task, for loggers; means over seeds."""
    average, *tasks = main_columns(comparison)
    spreads = {
        f"{row.label}/{column.title}": column.spread(row)
        for row in comparison.listed()
        for column in (average, *tasks)
    }
    return {name: spread.mean for name, spread in spreads.items() if spread}


def rows_csv(comparison: Comparison) -> str:
    """One line per row, numbers not rounded, deviations in columns of their own."""
    average, *tasks = main_columns(comparison)
    memory = memory_columns(comparison)[-1]
    numbers = {column.title: column for column in (*tasks, average)} | {
        "normalised_average": OF_EXPERTS,
        "merge_seconds": MERGE,
        "evaluate_seconds": EVALUATE,
        "peak_memory_mib": memory,
    }
    lines = []
    for row in comparison.listed():
        line: dict[str, object] = {
            "label": row.label,
            "method": row.method,
            "metric": comparison.metric if comparison.finished else None,
            "seeds": " ".join(map(str, row.seeds)),
            "failed": len(row.failures),
            "error": next(iter(row.errors()), ""),
            "added_parameters": next(iter(row.figures["parameters/added"]), None),
        }
        for name, column in numbers.items():
            spread = column.spread(row)
            line[name] = spread.mean if spread else None
            line[f"{name}_std"] = spread.deviation if spread else None
        line |= average_difference(row)
        lines.append(line)
    return frame_csv(pd.DataFrame(lines, dtype=object))


def cells_csv(comparison: Comparison) -> str:
    """One line per cell, with every metric of every task."""
    return frame_csv(
        comparison.cells.filter(
            regex="^(?!record$|(normalised|difference|low|high|p|same)/)"
        )
    )


def frame_csv(frame: pd.DataFrame) -> str:
    """A frame's CSV."""
    values = [[*map(_inert, line)] for line in frame.to_numpy()]
    frame = pd.DataFrame(values, columns=[*map(_inert, frame.columns)], dtype=object)
    return frame.to_csv(index=False, lineterminator="\n")


def _inert(value: object) -> object:
    """Text that a spreadsheet would run as a formula begins with an apostrophe."""
    formula = isinstance(value, str) and value.startswith(tuple("=+-@\t\r"))
    return f"'{value}" if formula else value
