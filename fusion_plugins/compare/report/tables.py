"""What the report's tables say: columns, rows and the key that each cell sorts by."""

from __future__ import annotations

from dataclasses import dataclass, field

from .numbers import MISSING, Scale, Spread, heading_text, seconds_text
from .results import Comparison, Row


@dataclass
class Column:
    """`best`: "max" or "min" marks the best merged method; "" marks none."""

    title: str
    unit: str = ""
    best: str = ""


@dataclass
class Entry:
    """One cell. `sort` is None where there is nothing to sort by: it stays last."""

    text: str
    sort: float | str | None = None
    deviation: str = ""
    best: bool = False
    note: str = ""


@dataclass
class Line:
    """One row of a table: the method it is about and its cells."""

    row: Row
    entries: list[Entry] = field(default_factory=list)


@dataclass
class Table:
    """A sortable table; its first column, the method, is no part of `columns`."""

    identifier: str
    caption: str
    columns: list[Column]
    lines: list[Line]

    @property
    def has_deviation(self) -> bool:
        return any(entry.deviation for line in self.lines for entry in line.entries)


def results_table(comparison: Comparison) -> Table:
    """The main table: the metric, what it cost, and which methods failed."""
    best = "max" if comparison.higher_is_better else "min"
    unit, metric = comparison.scale.unit, comparison.metric
    columns = [Column("average", unit, best)]
    columns += [Column("of experts", "%", "max")] * has_shares(comparison)
    columns += [Column(task, unit, best) for task in comparison.tasks]
    columns += cost_columns(comparison)
    lines = []
    for row in comparison.rows:
        entries = [_entry(row.average(metric), comparison.scale)]
        if has_shares(comparison):
            share = row.over_seeds("normalised_average")
            entries.append(_entry(share, Scale(percent=True)))
        for task in comparison.tasks:
            entries.append(
                _entry(row.over_seeds("tasks", task, metric), comparison.scale)
            )
        lines.append(Line(row, entries + cost_entries(row, comparison)))
    table = Table(
        "results",
        f"{heading_text(metric)} per task"
        + (" in percent" if comparison.scale.percent else "")
        + ", with what each method cost",
        columns,
        lines,
    )
    return _mark_best(table)


def share_table(comparison: Comparison) -> Table | None:
    """Every task's value as a share of its expert's; None without experts."""
    if not has_shares(comparison):
        return None
    percent = Scale(percent=True)
    columns = [Column(name, "%", "max") for name in ("average", *comparison.tasks)]
    lines = [
        Line(
            row,
            [_entry(row.over_seeds("normalised_average"), percent)]
            + [
                _entry(row.over_seeds("normalised", t), percent)
                for t in comparison.tasks
            ],
        )
        for row in comparison.finished
    ]
    caption = f"{heading_text(comparison.metric)} as a share of each task's expert"
    return _mark_best(Table("shares", caption, columns, lines))


def metric_tables(comparison: Comparison) -> list[Table]:
    """One table for every further metric, e.g. loss and calibration error."""
    tables = []
    for metric in comparison.other_metrics:
        scale = Scale(percent=False)
        columns = [Column(name) for name in ("average", *comparison.tasks)]
        lines = [
            Line(
                row,
                [_entry(row.average(metric), scale)]
                + [
                    _entry(row.over_seeds("tasks", task, metric), scale)
                    for task in comparison.tasks
                ],
            )
            for row in comparison.finished
        ]
        caption = f"{heading_text(metric)} per task"
        tables.append(Table(f"metric-{len(tables) + 1}", caption, columns, lines))
    return tables


def has_shares(comparison: Comparison) -> bool:
    return any(row.over_seeds("normalised_average") for row in comparison.finished)


def cost_columns(comparison: Comparison) -> list[Column]:
    columns = [Column("merge", "s"), Column("evaluate", "s")]
    columns += [Column("peak memory", "MiB")]
    columns += [Column("peak GPU memory", "MiB")] * _uses_gpu(comparison)
    return columns + [Column("parameters added"), Column("seeds")]


def cost_entries(row: Row, comparison: Comparison) -> list[Entry]:
    """Seconds, memory, parameters and seeds of one method."""
    devices = ["cpu"] + ["cuda"] * _uses_gpu(comparison)
    memory = [row.over_seeds("peak_memory_mib", device) for device in devices]
    return [
        *(_seconds(row.over_seeds("seconds", part)) for part in ("merge", "evaluate")),
        *map(_memory, memory),
        _parameters(row),
        Entry(str(len(row.cells)), len(row.cells), note=_seeds(row)),
    ]


def _uses_gpu(comparison: Comparison) -> bool:
    rows = comparison.finished
    return any(row.over_seeds("peak_memory_mib", "cuda") for row in rows)


def _parameters(row: Row) -> Entry:
    added = row.over_seeds("parameters", "added")
    whole = row.over_seeds("parameters", "model")
    if added is None:
        return Entry(MISSING)
    base = whole.mean - added.mean if whole else 0
    share = f" ({100 * added.mean / base:.2f} %)" if base and added.mean else ""
    return Entry(f"{added.mean:,.0f}{share}", added.mean)


def _seeds(row: Row) -> str:
    return "seeds " + ", ".join(map(str, row.seeds)) if row.cells else ""


def _seconds(spread: Spread | None) -> Entry:
    if spread is None:
        return Entry(MISSING)
    deviation = seconds_text(spread.deviation) if spread.deviation else ""
    deviation = "" if deviation == seconds_text(0) else deviation
    return Entry(seconds_text(spread.mean), spread.mean, deviation)


def _memory(spread: Spread | None) -> Entry:
    return Entry(f"{spread.mean:,.0f}", spread.mean) if spread else Entry(MISSING)


def _entry(spread: Spread | None, scale: Scale) -> Entry:
    if spread is None:
        return Entry(MISSING)
    deviation = scale.text(spread.deviation) if spread.deviation is not None else ""
    sort = spread.mean if spread.finite else None
    return Entry(scale.text(spread.mean), sort, deviation)


def _mark_best(table: Table) -> Table:
    for index, column in enumerate(table.columns):
        entries = [
            line.entries[index]
            for line in table.lines
            if not line.row.is_reference and line.entries[index].sort is not None
        ]
        if column.best and len(entries) > 1:
            best = (max if column.best == "max" else min)(e.sort for e in entries)
            for entry in entries:
                entry.best = entry.sort == best
    return table
