"""What a search leaves: the whole response as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common import how_to_get
from ..common.logging import get_logger
from .search import Candidate, Search

log = get_logger(__name__)


def described(settings: Mapping[str, Any]) -> str:
    """Settings as people write them."""
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def chosen(search: Search) -> Candidate:
    """The best candidate of a search that has seen one."""
    assert search.best is not None
    return search.best


def publish(
    search: Search, about: Mapping[str, Any], folder: Path | None, name: str
) -> dict[str, Any]:
    """Log the choice, and write ``<name>.json`` and ``<name>.png``.

    Args:
        search: A finished search.
        about: What else is to be said; `score` names the axis.
        folder: Where to; None to write nothing.
        name: Of both files.

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
        if (command := how_to_get("matplotlib")) is None:
            _draw(search, about["score"], folder / f"{name}.png")
        else:
            log.warning("There is no picture of the selection: %s", command)
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


def _draw(search: Search, score: str, path: Path) -> None:
    """The score over the option with most values; a line for each of the others."""
    from matplotlib.figure import Figure  # on use: it is slow to import

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    all_settings = [candidate.settings for candidate in search.candidates]
    counts = {n: len({str(s[n]) for s in all_settings}) for n in all_settings[0]}
    option = max(reversed(counts), key=counts.__getitem__)  # the scaling is the last
    lines: dict[str, list[Candidate]] = {}
    for candidate in search.candidates:
        others = {k: v for k, v in candidate.settings.items() if k != option}
        lines.setdefault(described(others), []).append(candidate)
    numeric = all(_is_number(settings[option]) for settings in all_settings)
    for label, line in lines.items():
        _draw_line(axes, line, option, numeric, label)
    best = chosen(search)
    x = _place(best, option, numeric)
    axes.plot(x, best.scores.mean, "*", ms=16, c="k", label="selected")
    axes.set(xlabel=option, ylabel=score, title="hollow: dropped early")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def _draw_line(
    axes: Any, line: list[Candidate], option: str, numeric: bool, label: str
) -> None:
    if numeric:
        line = sorted(line, key=lambda candidate: candidate.settings[option])
    x = [_place(candidate, option, numeric) for candidate in line]
    y = [candidate.scores.mean for candidate in line]
    errors = [candidate.scores.standard_error for candidate in line]
    bars = axes.errorbar(x, y, errors, marker="o", capsize=3, label=label or None)
    hollow = [i for i, candidate in enumerate(line) if candidate.dropped]
    places, heights = [x[i] for i in hollow], [y[i] for i in hollow]
    axes.plot(places, heights, "o", mfc="w", c=bars.lines[0].get_color(), zorder=3)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _place(candidate: Candidate, option: str, numeric: bool) -> Any:
    value = candidate.settings[option]
    return value if numeric else str(value)
