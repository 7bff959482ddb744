"""What the report's tables say: columns, rows and the key that each cell sorts by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..columns import (
    ADDED,
    EVALUATE,
    MERGE,
    OF_EXPERTS,
    Column,
    main_columns,
    memory_columns,
    metric_columns,
)
from ..numbers import MISSING, PERCENT, PLAIN, heading_text
from ..results import Comparison, Row


@dataclass
class Entry:
    """One cell. `sort` is None where there is nothing to sort by: it stays last."""

    text: str
    sort: float | None = None
    deviation: str = ""
    best: bool = False
    note: str = ""


@dataclass
class Table:
    """A sortable table; its first column, the method, is no part of `columns`.

    Attributes:
        lines: Each row with its entries.
    """

    identifier: str
    caption: str
    columns: Sequence[Column]
    lines: list[tuple[Row, list[Entry]]]

    @property
    def has_deviation(self) -> bool:
        return any(entry.deviation for _, entries in self.lines for entry in entries)


def results_table(comparison: Comparison) -> Table:
    """The main table: the metric, what it cost, and which methods failed."""
    average, *tasks = main_columns(comparison)
    columns = [average, *[OF_EXPERTS] * has_shares(comparison), *tasks]
    columns += [MERGE, EVALUATE, *memory_columns(comparison)]
    percent = " in percent" if comparison.scale.percent else ""
    caption = f"{heading_text(comparison.metric)} per task{percent}, with what each method cost"
    table = _table("results", caption, columns, comparison.rows)
    table.columns = [*columns, replace(ADDED, title="parameters added"), _SEEDS]
    for row, entries in table.lines:
        note = f"seeds {', '.join(map(str, row.seeds))}" if row.cells else ""
        count = len(row.cells)
        entries += [_added(row), Entry(str(count), count, note=note)]
    return table


_SEEDS = Column("seeds", "seed", str)


def share_table(comparison: Comparison) -> Table | None:
    """Every task's value as a share of its expert's; None without experts."""
    if not has_shares(comparison):
        return None
    columns = [replace(OF_EXPERTS, title="average")] + [
        Column(task, f"normalised/{task}", PERCENT.text, "%", "max")
        for task in comparison.tasks
    ]
    caption = f"{heading_text(comparison.metric)} as a share of each task's expert"
    return _table("shares", caption, columns, comparison.finished)


def metric_tables(comparison: Comparison) -> list[Table]:
    """One table for every further metric, e.g. loss and calibration error."""
    return [
        _table(
            f"metric-{number}",
            f"{heading_text(metric)} per task",
            metric_columns(comparison, metric, PLAIN),
            comparison.finished,
        )
        for number, metric in enumerate(comparison.other_metrics, start=1)
    ]


def has_shares(comparison: Comparison) -> bool:
    return any(OF_EXPERTS.spread(row) for row in comparison.finished)


def _added(row: Row) -> Entry:
    added, whole = ADDED.spread(row), row.over_seeds("parameters/model")
    if added is None:
        return Entry(MISSING)
    base = whole.mean - added.mean if whole else 0
    share = f" ({100 * added.mean / base:.2f} %)" if base and added.mean else ""
    return Entry(f"{ADDED.text(added.mean)}{share}", added.mean)


def _table(
    identifier: str, caption: str, columns: list[Column], rows: list[Row]
) -> Table:
    lines = [(row, [_entry(row, column) for column in columns]) for row in rows]
    for index, column in enumerate(columns):
        entries = [entries[index] for row, entries in lines if not row.is_reference]
        _mark_best([e for e in entries if e.sort is not None], column.best)
    return Table(identifier, caption, columns, lines)


def _entry(row: Row, column: Column) -> Entry:
    spread = column.spread(row)
    if spread is None:
        return Entry(MISSING)
    sort = spread.mean if spread.finite else None
    return Entry(column.text(spread.mean), sort, column.deviation(row))


def _mark_best(entries: list[Entry], best: str) -> None:
    if best and len(entries) > 1:
        value = (max if best == "max" else min)(entry.sort for entry in entries)
        for entry in entries:
            entry.best = entry.sort == value
