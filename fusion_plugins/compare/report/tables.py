"""The report's sortable tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..columns import (
    ADDED,
    EVALUATE,
    MERGE,
    OF_EXPERTS,
    Added,
    Column,
    Seeds,
    main_columns,
    memory_columns,
    metric_columns,
    ranks,
)
from ..numbers import PERCENT, heading_text, whole_text
from ..results import Comparison, Row


@dataclass
class Table:
    """A sortable table; its first column, the method, is no part of `columns`."""

    identifier: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]

    @property
    def has_deviation(self) -> bool:
        return any(c.deviation(row) for c in self.columns for row in self.rows)

    @property
    def has_marks(self) -> bool:
        return any(c.mark(row) for c in self.columns for row in self.rows)

    @cached_property
    def ranks(self) -> list[tuple[int, ...]]:
        """Of every row in every column."""
        return list(zip(*(ranks(c, self.rows) for c in self.columns), strict=True))


def results_table(comparison: Comparison) -> Table:
    """The main table: the metric, and which methods failed."""
    average, *tasks = main_columns(comparison)
    shares = _has_shares(comparison) and not comparison.metrics
    columns = [average, *[OF_EXPERTS] * shares, *tasks]
    percent = " in percent" if comparison.scale.percent else ""
    caption = f"{heading_text(comparison.metric)} per task{percent}"
    if comparison.metrics:
        caption = "A metric for each task; the average is of shares of the experts"
    return Table("results", caption, columns, comparison.rows)


def cost_table(comparison: Comparison) -> Table:
    """What every method cost."""
    columns = [MERGE, EVALUATE, *memory_columns(comparison)]
    columns += [Added("parameters added", ADDED.source, ADDED.text)]
    columns += [Seeds("seeds", "seed", whole_text)]
    return Table("costs", "What each method cost", columns, comparison.rows)


def share_table(comparison: Comparison) -> Table | None:
    """Every task's value as a share of its expert's; None without experts."""
    if not _has_shares(comparison):
        return None
    columns = [replace(OF_EXPERTS, title="average")] + [
        Column(task, f"normalised/{task}", PERCENT.text, "%", "max")
        for task in comparison.tasks
    ]
    metric = "metric of each task" if comparison.metrics else comparison.metric
    caption = f"{heading_text(metric)} as a share of each task's expert"
    return Table("shares", caption, columns, comparison.finished)


def metric_tables(comparison: Comparison) -> list[Table]:
    """One table for every further metric, e.g. loss and calibration error."""
    tables: list[Table] = []
    for metric in comparison.other_metrics:
        columns = metric_columns(comparison, metric)
        name, caption = f"metric-{len(tables) + 1}", f"{heading_text(metric)} per task"
        tables.append(Table(name, caption, columns, comparison.finished))
    return tables


def _has_shares(comparison: Comparison) -> bool:
    return any(OF_EXPERTS.spread(row) for row in comparison.finished)
