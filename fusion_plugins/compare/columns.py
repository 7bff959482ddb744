"""The columns of the tables: which figure of a row they show, and how; the same as frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from .numbers import MISSING, PERCENT, PLAIN, Spread, seconds_text, whole_text
from .results import Comparison, Row
from .verdicts import average_difference

SAME = "≈"


@dataclass(frozen=True)
class Column:
    """One figure of every row.

    Attributes:
        title, unit: Of the heading.
        source: Column of the results frame.
        text: How its numbers are written.
        best: "max" or "min" marks the best merged method; "" marks none.
        metric: Of this column, where others have another one.
    """

    title: str
    source: str
    text: Callable[[float], str]
    unit: str = ""
    best: str = ""
    metric: str = ""

    @property
    def heading(self) -> str:
        """`depth (abs_err ↓)`, or the title alone."""
        arrow = "↑" if self.best == "max" else "↓"
        own = " ".join(filter(None, (self.metric, self.unit, arrow)))
        return f"{self.title} ({own})" if self.metric else self.title

    @property
    def digits(self) -> str:
        """Format of published numbers."""
        return ".4g" if self.metric and not self.unit else ".1f"

    def spread(self, row: Row) -> Spread | None:
        return row.over_seeds(self.source)

    def sort(self, row: Row) -> float | None:
        """What rows sort by; None stays last."""
        spread = self.spread(row)
        return spread.mean if spread and spread.finite else None

    def mean(self, row: Row) -> str:
        spread = self.spread(row)
        return self.text(spread.mean) if spread else MISSING

    def deviation(self, row: Row) -> str:
        """Empty with one seed, for whole numbers, and for seconds that do not differ."""
        spread = self.spread(row)
        if spread is None or spread.deviation is None or self.text is whole_text:
            return ""
        text = self.text(spread.deviation)
        return "" if self.text is seconds_text and text == seconds_text(0) else text

    def note(self, row: Row) -> str:
        return ""

    def mark(self, row: Row) -> str:
        """`SAME` where the row is not distinguishable from the baseline.

        That stands in an optional column of the results frame, as ``same/average``.
        """
        return SAME if row.first(f"same/{self.title}") is True else ""


class Added(Column):
    """Parameters added, with their share of the pretrained model's."""

    def mean(self, row: Row) -> str:
        added, whole = self.spread(row), row.over_seeds("parameters/model")
        base = whole.mean - added.mean if added and whole else 0
        share = f" ({100 * added.mean / base:.2f} %)" if added and base else ""
        return super().mean(row) + (share if added and added.mean else "")


class Seeds(Column):
    """How many seeds finished, and which."""

    def sort(self, row: Row) -> int:
        return len(row.cells)

    def mean(self, row: Row) -> str:
        return str(len(row.cells))

    def note(self, row: Row) -> str:
        return f"seeds {', '.join(map(str, row.seeds))}" if row.cells else ""


def ranks(column: Column, rows: Sequence[Row]) -> list[int]:
    """1 for the best of several merged models, 2 for the second, 0 for all others."""
    merged = [None if row.is_reference else column.sort(row) for row in rows]
    found = pd.Series(merged, dtype=float).rank(
        method="min", ascending=column.best == "min"
    )
    if not column.best or found.count() < 2:
        return [0] * len(rows)
    return found.where(found <= 2, 0).astype(int).tolist()


def metric_columns(comparison: Comparison, metric: str) -> list[Column]:
    """The average, then every task, of a further metric."""
    names = ["average", *comparison.tasks]
    return [Column(name, f"{name}/{metric}", PLAIN.text) for name in names]


def main_columns(comparison: Comparison) -> list[Column]:
    """The average, then every task, of the main metric."""
    columns = []
    for name in ["average", *comparison.tasks]:
        best = "max" if comparison.higher(name) else "min"
        scale, own = comparison.scale_of(name), comparison.metrics.get(name, "")
        source = f"{name}/{comparison.metric}"
        columns.append(Column(name, source, scale.text, scale.unit, best, own))
    return columns


OF_EXPERTS = Column("of experts", "normalised_average", PERCENT.text, "%", "max")
MERGE = Column("merge", "seconds/merge", seconds_text, "s")
EVALUATE = Column("evaluate", "seconds/evaluate", seconds_text, "s")
MEMORY = Column("peak memory", "peak_mib/cpu", whole_text, "MiB")
GPU_MEMORY = Column("peak GPU memory", "peak_mib/cuda", whole_text, "MiB")
ADDED = Column("added", "parameters/added", whole_text)


def memory_columns(comparison: Comparison) -> list[Column]:
    """The process's memory and, where one was used, the GPU's."""
    gpu = any(GPU_MEMORY.spread(row) for row in comparison.finished)
    return [MEMORY, GPU_MEMORY] if gpu else [MEMORY]


def columns_of(comparison: Comparison) -> dict[str, Column]:
    """Name in `rows_frame` -> the column: tasks, average, shares and costs."""
    average, *tasks = main_columns(comparison)
    return {column.title: column for column in (*tasks, average)} | {
        "normalised_average": OF_EXPERTS,
        "merge_seconds": MERGE,
        "evaluate_seconds": EVALUATE,
        "peak_memory_mib": memory_columns(comparison)[-1],
    }


def rows_frame(comparison: Comparison) -> pd.DataFrame:
    """One line per row, as listed; numbers are means, deviations in columns of their own.

    The index is the rows' numbers.
    """
    rows = comparison.listed()
    lines = [_line(row, comparison) for row in rows]
    return pd.DataFrame(lines, index=[row.number for row in rows], dtype=object)


def _line(row: Row, comparison: Comparison) -> dict[str, object]:
    own = ", ".join(f"{task} {name}" for task, name in comparison.metrics.items())
    line: dict[str, object] = {
        "label": row.label,
        "method": row.method,
        "metric": own or comparison.metric if comparison.finished else None,
        "seeds": " ".join(map(str, row.seeds)),
        "failed": len(row.failures),
        "error": next(iter(row.errors()), ""),
        "added_parameters": row.first(ADDED.source),
    }
    for name, column in columns_of(comparison).items():
        spread = column.spread(row)
        line[name] = spread.mean if spread else None
        line[f"{name}_std"] = spread.deviation if spread else None
    return line | average_difference(row)


def scalars(rows: pd.DataFrame, tasks: Sequence[str]) -> dict[str, float]:
    """A number per method and task, for loggers; means over seeds."""
    found = rows.set_index("label")[["average", *tasks]].T.to_dict()
    return {
        f"{label}/{name}": value
        for label, numbers in found.items()
        for name, value in numbers.items()
        if value is not None
    }


def cells_csv(comparison: Comparison) -> str:
    """One line per cell, with every metric of every task."""
    derived = "(normalised|difference|low|high|p|same)/"
    return frame_csv(comparison.cells.filter(regex=f"^(?!record$|{derived})"))


def frame_csv(frame: pd.DataFrame) -> str:
    """A frame's CSV."""
    values = [[*map(_inert, line)] for line in frame.to_numpy()]
    frame = pd.DataFrame(values, columns=[*map(_inert, frame.columns)], dtype=object)
    return frame.to_csv(index=False, lineterminator="\n")


def _inert(value: object) -> object:
    """Text that a spreadsheet would run as a formula begins with an apostrophe."""
    formula = isinstance(value, str) and value.startswith(tuple("=+-@\t\r"))
    return f"'{value}" if formula else value
