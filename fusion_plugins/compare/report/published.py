"""Published numbers beside the measured ones, where the recipe knows some."""

from __future__ import annotations

from ..numbers import MISSING, Scale, Spread
from ..results import Comparison, Row


def published(comparison: Comparison) -> dict | None:
    """What the page shows of ``published`` in compare.json; None without it.

    Published values are in percent. `rows` hold label, measured_label and figures; a
    figure is (published, measured, difference) as text, difference None if unknown.
    """
    entries = comparison.published.get("rows")
    if not entries:
        return None
    named = {task for entry in entries for task in entry.get("tasks") or ()}
    tasks = [task for task in comparison.tasks if task in named]
    return {
        "source": comparison.published.get("source") or MISSING,
        "checkpoints": comparison.published.get("checkpoints") or MISSING,
        "differs": comparison.published.get("differs") or [],
        "tasks": tasks,
        "rows": [_row(entry, tasks, comparison) for entry in entries],
    }


def measured_row(entry: dict, comparison: Comparison) -> Row | None:
    """The row without overrides of the entry's method, else the only row of it."""
    method = entry.get("method")
    rows = [row for row in comparison.finished if method and row.method == method]
    plain = [row for row in rows if not row.any_cell.get("overrides")]
    return next(iter(plain or rows[: len(rows) == 1]), None)


def _row(entry: dict, tasks: list[str], comparison: Comparison) -> dict:
    row = measured_row(entry, comparison)
    values = {"average": entry.get("average")} | {
        task: (entry.get("tasks") or {}).get(task) for task in tasks
    }
    return {
        "label": entry["label"],
        "measured_label": row and row.label,
        "figures": [
            _figure(
                value,
                comparison.task(row, name) if row else None,
                comparison.scale_of(name),
            )
            for name, value in values.items()
        ],
    }


def _figure(published: float | None, measured: Spread | None, scale: Scale) -> dict:
    percent = None if measured is None else measured.mean * scale.factor
    difference = None
    if percent is not None and published is not None:
        difference = f"{percent - published:+.1f}".replace("-", "−")
    return {
        "published": MISSING if published is None else f"{published:.1f}",
        "measured": MISSING if percent is None else f"{percent:.1f}",
        "difference": difference,
    }
