"""What the page says of a comparison beside tables: its first lines, published numbers."""

from __future__ import annotations

from collections.abc import Sequence

from ..columns import Column, main_columns
from ..loading import EXPERTS, PRETRAINED
from ..numbers import MISSING, PERCENT, count_text, date_text, duration_text
from ..results import Comparison, Row


def summary(comparison: Comparison) -> dict:
    """Tiles (label, value, note), a sentence, and what every cell shares."""
    facts = [
        ("Started", date_text(comparison.about.get("started"))),
        ("Tasks", ", ".join(comparison.tasks)),
        ("Device", _shared(comparison, "device")),
        ("Commit of the working folder", _shared(comparison, "git_commit")),
    ]
    return {
        "sentence": _sentence(comparison),
        "tiles": _tiles(comparison),
        "setup": [(name, value) for name, value in facts if value],
        "versions": _shared(comparison, "versions"),
    }


def _sentence(comparison: Comparison) -> str:
    best = comparison.best()
    if best is None:
        failed = len([row for row in comparison.rows if row.failures])
        failures = f"{count_text(failed, 'method')} failed."
        return f"No merged model was measured; {failures}" if failed else ""
    unit = f"\u00a0{comparison.scale.unit}" if comparison.scale.unit else ""
    count = len(comparison.tasks)
    over = f"on average over {count} tasks" if count != 1 else "on one task"
    text = f"{best.label} is best: {_average(comparison, best)}{unit} {comparison.measure} {over}"
    share = best.over_seeds("normalised_average")
    if share and share.finite and not comparison.metrics:
        text += f", {PERCENT.text(share.mean)}\u00a0% of the individual experts"
    return text + "."


def _average(comparison: Comparison, row: Row) -> str:
    return comparison.scale.spread(comparison.average(row))


def _tiles(comparison: Comparison) -> list[tuple[str, str, str]]:
    note = f"{comparison.scale.unit} average {comparison.measure}".strip()
    best = comparison.best()
    tiles = []
    if best:
        value = f"{_average(comparison, best)} {note}"
        tiles.append(("Best merged model", best.label, value))
    for name in (EXPERTS, PRETRAINED):
        if row := comparison.row(name):
            tiles.append((name.capitalize(), _average(comparison, row), note))
    costs = [cell["seconds"] for row in comparison.rows for cell in row.cells]
    counts = f"{count_text(len(costs), 'run')} finished"
    if failed := sum(len(row.failures) for row in comparison.rows):
        counts += f", {failed} failed"
    tiles.append(("Methods", str(len(comparison.rows)), counts))
    spent = sum((cost["merge"] or 0) + (cost["evaluate"] or 0) for cost in costs)
    if spent:
        note = "merging and evaluating, all runs"
        tiles.append(("Time", duration_text(spent), note))
    return tiles


def failures(comparison: Comparison) -> list[dict]:
    """Failed runs; seeds of one method with the same error are one entry."""
    return [
        {"row": row, "cells": cells, "anchor": not place}
        for row in comparison.rows
        for place, cells in enumerate(row.errors().values())
    ]


def _shared(comparison: Comparison, key: str) -> object:
    """The value all cells agree on, else None."""
    first, *others = (record.get(key) for record in comparison.cells["record"])
    return first if all(other == first for other in others) else None


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
            _figure(given.get(column.title), row, column) for column in columns
        ],
    }


def _figure(published: float | None, row: Row | None, column: Column) -> dict:
    factor, digits = 100 if column.unit == "%" else 1, column.digits
    measured = column.spread(row) if row else None
    found = None if measured is None else measured.mean * factor
    difference = None
    if found is not None and published is not None:
        difference = f"{found - published:+{digits}}".replace("-", "−")
    return {
        "published": MISSING if published is None else f"{published:{digits}}",
        "measured": MISSING if found is None else f"{found:{digits}}",
        "difference": difference,
    }
