"""Published numbers beside the measured ones, where the recipe knows some."""

from __future__ import annotations

from .numbers import MISSING
from .results import Comparison, Row


def published_context(comparison: Comparison) -> dict | None:
    """What the page shows of ``published`` in compare.json; None without it.

    Published values are in percent. `rows` hold label, measured_label, average and tasks;
    a figure is (published, measured, difference) as text, difference None if unknown.
    """
    published = comparison.about.get("published")
    if not published or not published.get("rows"):
        return None
    tasks = [
        task
        for task in comparison.tasks
        if any(task in (entry.get("tasks") or {}) for entry in published["rows"])
    ]
    return {
        "source": published.get("source") or MISSING,
        "checkpoints": published.get("checkpoints") or MISSING,
        "differs": published.get("differs") or [],
        "tasks": tasks,
        "rows": [_row(entry, tasks, comparison) for entry in published["rows"]],
    }


def published_average(row: Row, comparison: Comparison) -> float | None:
    """The published average (percent) of the method that `row` measured."""
    published = comparison.about.get("published") or {}
    for entry in published.get("rows") or []:
        if measured_row(entry, comparison) is row:
            return entry.get("average")
    return None


def measured_row(entry: dict, comparison: Comparison) -> Row | None:
    """The row without overrides of the entry's method, else the only row of it."""
    method = entry.get("method")
    rows = [row for row in comparison.finished if method and row.method == method]
    plain = [row for row in rows if not row.any_cell.get("overrides")]
    if plain:
        return plain[0]
    return rows[0] if len(rows) == 1 else None


def _row(entry: dict, tasks: list[str], comparison: Comparison) -> dict:
    row = measured_row(entry, comparison)
    metric = comparison.metric
    average = row.average(metric) if row else None
    figures = [_figure(entry.get("average"), average, comparison)]
    for task in tasks:
        measured = row.over_seeds("tasks", task, metric) if row else None
        figures.append(
            _figure((entry.get("tasks") or {}).get(task), measured, comparison)
        )
    return {
        "label": entry["label"],
        "measured_label": row.label if row else None,
        "figures": figures,
    }


def _figure(published, measured, comparison: Comparison) -> dict:
    percent = measured.mean * comparison.scale.factor if measured else None
    known = percent is not None and published is not None
    return {
        "published": MISSING if published is None else f"{published:.1f}",
        "measured": MISSING if percent is None else f"{percent:.1f}",
        "difference": (
            f"{percent - published:+.1f}".replace("-", "−") if known else None
        ),
    }
