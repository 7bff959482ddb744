"""Read a results folder: `compare.json` and one JSON file per finished cell."""

from __future__ import annotations

from pathlib import Path

from ..files import read_json
from .results import Comparison, Row


def read_results(folder: Path) -> Comparison:
    """Read `compare.json` and `cells/*.json` of a results folder.

    Raises:
        ValueError: The folder is none of a comparison, holds no cell, or a file of it is
            not readable.
    """
    folder = Path(folder)
    if not (folder / "compare.json").is_file():
        raise ValueError(
            f"{folder} is not a results folder of a comparison: it has no compare.json."
            " Pass the folder that `fusion_bench --config-name compare` wrote."
        )
    about = read_json(folder / "compare.json")
    cells = [read_json(path) for path in sorted((folder / "cells").glob("*.json"))]
    if not cells:
        raise ValueError(
            f"{folder} has no finished cell under cells/, so there is nothing to report."
            " Run the comparison first."
        )
    return _compare(about, cells, folder.name)


def _compare(about: dict, cells: list[dict], name: str) -> Comparison:
    rows: dict[str, Row] = {}
    for cell in cells:
        row = rows.setdefault(cell["label"], Row(cell["label"], cell["method"]))
        (row.cells if cell["status"] == "done" else row.failures).append(cell)
    leading = next((c for c in cells if c["status"] == "done"), cells[0])
    comparison = Comparison(
        title=about.get("title") or name,
        tasks=list(about.get("tasks") or leading.get("tasks") or []),
        metric=leading.get("metric") or "accuracy",
        higher_is_better=leading.get("higher_is_better") is not False,
        rows=list(rows.values()),
        about=about,
    )
    for row in comparison.rows:
        row.cells.sort(key=lambda cell: cell.get("seed") or 0)
    comparison.rows.sort(key=lambda row: _rank(row, comparison))
    for number, row in enumerate(comparison.rows, start=1):
        row.number = number
    return comparison


def _rank(row: Row, comparison: Comparison) -> tuple:
    average = row.average(comparison.metric)
    if average is None or not average.finite:
        return (1, 0.0, row.label)
    sign = -1 if comparison.higher_is_better else 1
    return (0, sign * average.mean, row.label)
