"""What a search leaves: the whole response as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common import COLUMN, get_logger, new_figure, save_pictures
from ..common.charts import described, draw_response
from .search import Candidate, Search

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = get_logger(__name__)


def chosen(search: Search) -> Candidate:
    """The best candidate of a search that has seen one."""
    assert search.best is not None
    return search.best


def publish(
    search: Search, about: Mapping[str, Any], folder: Path | None, name: str
) -> dict[str, Any]:
    """Log the choice, and write ``<name>.json`` and a picture.

    Args:
        search: A finished search.
        about: What else is to be said; `score` names the axis.
        folder: Where to; None to write nothing.
        name: Of the files.

    Returns:
        What the JSON file holds.
    """
    best = chosen(search)
    log.info(
        "Selected %s: %s %.4f +- %.4f, worst task %.4f; %d candidates, %d dropped early",
        described(best.settings),
        about["score"],
        best.scores.mean,
        best.scores.standard_error,
        min(best.scores.tasks),
        len(search.candidates),
        sum(candidate.dropped for candidate in search.candidates),
    )
    names = [task.name for task in search.scorer.tasks]
    found = [_entry(candidate, names) for candidate in search.candidates]
    record = {**about, "chosen": dict(best.settings), "candidates": found}
    if folder is not None:
        (folder / f"{name}.json").write_text(json.dumps(record, indent=2, default=str))
        pictures = {name: partial(_drawn, record)}
        save_pictures(folder, pictures, "the selection")
    return record


def _entry(candidate: Candidate, names: list[str]) -> dict[str, Any]:
    scores = candidate.scores
    return {
        "options": dict(candidate.settings),
        "mean": scores.mean,
        "standard_error": scores.standard_error,
        "worst": min(scores.tasks),
        "tasks": dict(zip(names, scores.tasks, strict=True)),
        "samples": {n: len(v) for n, v in zip(names, scores.values, strict=True)},
        "dropped": candidate.dropped,
        "seconds": {
            "merge": candidate.merge_seconds,
            "score": candidate.score_seconds,
        },
    }


def _drawn(record: Mapping[str, Any]) -> Figure:
    figure = new_figure(1.3 * COLUMN, COLUMN)
    draw_response(figure.add_subplot(), record)
    return figure
