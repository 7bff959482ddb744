"""One table for terminal, Markdown and LaTeX: which rows and columns, and their texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..common.options import Options, integer, option
from .columns import ADDED, SAME, Column, columns_of, ranks, rows_frame
from .files import did_you_mean
from .numbers import MISSING
from .results import Comparison, Row, shorter_averages
from .verdicts import verdicts

FAILED = "failed"
_NOTHING = "-"
# Columns beside the tasks, in the tables' order -> their headings.
_HEADINGS = {
    "average": "average",
    "normalised_average": "of experts",
    "merge_seconds": "merge s",
    "peak_memory_mib": "peak MiB",
    "added_parameters": "added",
}


def _name(name: str, value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value  # compared with the names that there are
    raise ValueError(f"{name} is {value!r}, expected the name of a column, as average.")


def _listed(name: str, value: Any) -> Any:
    if value is None or isinstance(value, list) and _are_texts(value):
        return value
    raise ValueError(f"{name} is {value!r}, expected a list of names, as [average].")


def _renamed(name: str, value: Any) -> Any:
    if value is None or isinstance(value, Mapping) and _are_texts(value.values()):
        return value
    raise ValueError(
        f"{name} is {value!r}, expected texts by name: {{oxford_flowers102: Flowers}}."
    )


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


@dataclass(frozen=True, kw_only=True)
class TableOptions(Options):
    """What the tables of terminal, Markdown and LaTeX show.

    Args:
        sort: Column of ``results.csv`` to sort rows by, the best first; None: as listed.
        columns: Of ``average``, ``normalised_average``, ``merge_seconds``,
            ``peak_memory_mib``, ``added_parameters`` and ``tasks``, which stands for all
            tasks; None for all of them.
        tasks: Only these tasks, in this order.
        split: Columns of numbers that a LaTeX table has at most before it goes on below.
        names: Label or task -> what LaTeX tables call it.

    Raises:
        ValueError: A value is of the wrong kind.
    """

    sort: str | None = option(None, _name)
    columns: list[str] | None = option(None, _listed)
    tasks: list[str] | None = option(None, _listed)
    split: int = integer(12, low=1)
    names: dict[str, str] | None = option(None, _renamed)


@dataclass
class Grid:
    """A table as people read it.

    Attributes:
        text: What its cells say; the first column names the method.
        rank: Of the same shape: 1 for the best merged model of a column, 2 for the
            second, 0 for all others.
        rows: Measured rows; published ones follow.
        heads: Column -> its heading.
    """

    text: pd.DataFrame
    rank: pd.DataFrame
    rows: int
    heads: dict[str, str]

    def headings(self, names: Iterable[str]) -> list[str]:
        """Of columns."""
        return [self.heads[name] for name in names]

    def part(self, columns: Sequence[str]) -> Grid:
        """The methods with some of the columns; the first says which failed."""
        names, failed = ["method", *columns], (self.text == FAILED).any(axis=1)
        text = self.text[names].copy()
        text.loc[failed, list(columns)] = [FAILED, *[""] * (len(columns) - 1)]
        return Grid(text, self.rank[names], self.rows, self.heads)


def make_grid(comparison: Comparison, options: TableOptions | None = None) -> Grid:
    """The rows with what was asked for, then published numbers.

    A failed row says so in its first cell; the others are empty.

    Raises:
        ValueError: There is no such task or column.
    """
    options = options or TableOptions()
    tasks = _known("tasks", options.tasks or comparison.tasks, comparison.tasks)
    columns = [*tasks, *_HEADINGS]
    if comparison.metrics:  # the average says the same
        columns.remove("normalised_average")
    if options.columns:
        chosen = _known("columns", options.columns, ["tasks", *tasks, *_HEADINGS])
        columns = [n for c in chosen for n in (tasks if c == "tasks" else [c])]
    frame = _sorted(rows_frame(comparison), options.sort, comparison)
    known = columns_of(comparison) | {"added_parameters": ADDED}
    by_number = {row.number: row for row in comparison.rows}
    rows = [by_number[number] for number in frame.index]
    shown = [known[name] for name in columns]
    lines = [[row.label, *_texts(shown, row)] for row in rows]
    published = [
        [f"{entry['label']} (published)", *_given(entry, columns, known)]
        for entry in comparison.published.get("rows") or ()
    ]
    text = pd.DataFrame([*lines, *published], None, ["method", *columns], dtype=object)
    rank = pd.DataFrame(0, index=text.index, columns=text.columns)
    for name in columns:
        rank.loc[: len(rows) - 1, name] = ranks(known[name], rows)
    heads = {name: _HEADINGS.get(name, known[name].heading) for name in columns}
    return Grid(text, rank, len(lines), {"method": "method"} | heads)


def _known(what: str, asked: Sequence[str], known: Sequence[str]) -> list[str]:
    for name in asked:
        if name not in known:
            raise ValueError(
                f"{what}: there is no '{name}', only {', '.join(known)}."
                f"{did_you_mean(name, list(known))}"
            )
    return list(dict.fromkeys(asked))


def _sorted(frame: pd.DataFrame, by: str | None, found: Comparison) -> pd.DataFrame:
    if by is None:
        return frame
    _known("sort", [by], list(frame.columns))
    values = frame[by].infer_objects()
    column = columns_of(found).get(by)
    falling = column is not None and column.best == "max"
    order = values.sort_values(ascending=not falling, kind="stable", na_position="last")
    return frame.loc[order.index]


def _texts(columns: Sequence[Column], row: Row) -> list[str]:
    if not row.cells:
        return [FAILED] + [""] * (len(columns) - 1)
    return [_text(column, row) for column in columns]


def _text(column: Column, row: Row) -> str:
    mean, deviation = column.mean(row).replace(MISSING, _NOTHING), column.deviation(row)
    mean += column.mark(row)
    return f"{mean} ± {deviation}" if deviation else mean


def _given(
    entry: dict, columns: Sequence[str], known: Mapping[str, Column]
) -> Iterator[str]:
    values = {**(entry.get("tasks") or {}), "average": entry.get("average")}
    for name in columns:
        value = values.get(name)
        yield _NOTHING if value is None else f"{value:{known[name].digits}}"


def protocol(comparison: Comparison) -> list[str]:
    """Sentences on what the numbers are; the first names the metric."""
    unit = " in percent" if comparison.scale.percent else ""
    direction = "" if comparison.higher_is_better else "; lower is better"
    metric = comparison.metric if comparison.finished else "No metric"
    sentences = [f"{metric}{unit}{direction}."]
    share = ""
    if comparison.metrics:
        sentences = ["A metric for each task; ↑: higher is better, ↓: lower is better."]
        share = "the mean share of the experts' results in percent, "
    if len(comparison.tasks) > 1:
        sentences.append(f"The average is {share}over {len(comparison.tasks)} tasks.")
    sentences += shorter_averages(comparison)
    seeds = {s for row in comparison.rows if len(row.cells) > 1 for s in row.seeds}
    if seeds:
        listed = ", ".join(map(str, sorted(seeds)))
        sentences.append(
            f"Mean and sample standard deviation over seeds {listed}, where there is a ±."
        )
    if comparison.cells.filter(regex="^same/").eq(True).any(axis=None):
        sentences.append(f"{SAME}: not distinguishable.")
    return sentences


def table_notes(comparison: Comparison) -> Iterator[str]:
    """Sentences below the table beside the `protocol`: failures, published numbers."""
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


def markdown_table(comparison: Comparison, options: TableOptions | None = None) -> str:
    """A table of GitHub's Markdown, notes as a list."""
    grid = make_grid(comparison, options)
    marks = {0: "{}", 1: "**{}**", 2: "<ins>{}</ins>"}
    cells = grid.text.map(_markdown).to_numpy()
    lines = [
        [marks[rank].format(cell) for cell, rank in zip(*pair, strict=True)]
        for pair in zip(cells, grid.rank.to_numpy(), strict=True)
    ]
    head = [*map(_markdown, grid.headings(grid.text))]
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(
        [
            f"# {_markdown(comparison.title)}\n",
            *(f"| {' | '.join(line)} |" for line in [head, rule, *lines]),
            "",
            *(f"- {_markdown(n)}" for n in [*protocol(comparison), BEST]),
            *(f"- {_markdown(note)}" for note in table_notes(comparison)),
            "",
        ]
    )


BEST = "Bold: the best merged model of a column; underlined: the second."


def _markdown(text: str) -> str:
    return " ".join(re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text).split())
