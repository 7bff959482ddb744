"""The results as DataFrames of exact numbers, and these as CSV."""

from __future__ import annotations

import pandas as pd

from .columns import (
    ADDED,
    EVALUATE,
    MERGE,
    OF_EXPERTS,
    Column,
    main_columns,
    memory_columns,
)
from .results import Comparison, Row
from .verdicts import average_difference


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
        "added_parameters": next(iter(row.figures[ADDED.source]), None),
    }
    for name, column in columns_of(comparison).items():
        spread = column.spread(row)
        line[name] = spread.mean if spread else None
        line[f"{name}_std"] = spread.deviation if spread else None
    return line | average_difference(row)


def scalars(comparison: Comparison) -> dict[str, float]:
    """A number per method and task, for loggers; means over seeds."""
    names = ["average", *comparison.tasks]
    frame = rows_frame(comparison).set_index("label")[names]
    return {
        f"{label}/{name}": value
        for label, numbers in frame.iterrows()
        for name, value in numbers.items()
        if value is not None
    }


def rows_csv(comparison: Comparison) -> str:
    """One line per row, numbers not rounded."""
    return frame_csv(rows_frame(comparison))


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
