"""Published numbers beside the measured ones, where the recipe knows some."""

from __future__ import annotations

from collections.abc import Sequence

from ..columns import Column, main_columns
from ..numbers import MISSING, Spread
from ..results import Comparison, Row


def published(comparison: Comparison) -> dict | None:
    """What the page shows of ``published`` in compare.json; None without it.

    Published values are in percent, or as their own metric is written. `rows` hold label,
    measured_label and figures; a figure is (published, measured, difference) as text,
    difference None if unknown.
    """
    entries = comparison.published.get("rows")
    if not entries:
        return None
    named = {task for entry in entries for task in entry.get("tasks") or ()}
    tasks = [task for task in comparison.tasks if task in named]
    columns = [c for c in main_columns(comparison) if c.title in ("average", *tasks)]
    return {
        "source": comparison.published.get("source") or MISSING,
        "checkpoints": comparison.published.get("checkpoints") or MISSING,
        "differs": comparison.published.get("differs") or [],
        "columns": columns[1:],
        "unit": "" if comparison.metrics else ", percent",
        "rows": [_row(entry, columns, comparison) for entry in entries],
    }


def measured_row(entry: dict, comparison: Comparison) -> Row | None:
    """The row without overrides of the entry's method, else the only row of it."""
    method = entry.get("method")
    rows = [row for row in comparison.finished if method and row.method == method]
    plain = [row for row in rows if not row.any_cell.get("overrides")]
    return next(iter(plain or rows[: len(rows) == 1]), None)


def _row(entry: dict, columns: Sequence[Column], comparison: Comparison) -> dict:
    row = measured_row(entry, comparison)
    given = {**(entry.get("tasks") or {}), "average": entry.get("average")}
    return {
        "label": entry["label"],
        "measured_label": row and row.label,
        "figures": [
            _figure(
                given.get(column.title), column.spread(row) if row else None, column
            )
            for column in columns
        ],
    }


def _figure(published: float | None, measured: Spread | None, column: Column) -> dict:
    factor, digits = 100 if column.unit == "%" else 1, column.digits
    found = None if measured is None else measured.mean * factor
    difference = None
    if found is not None and published is not None:
        difference = f"{found - published:+{digits}}".replace("-", "−")
    return {
        "published": MISSING if published is None else f"{published:{digits}}",
        "measured": MISSING if found is None else f"{found:{digits}}",
        "difference": difference,
    }
