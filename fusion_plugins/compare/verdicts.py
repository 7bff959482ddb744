"""What the differences to the baseline say, in words."""

from __future__ import annotations

from collections.abc import Iterator

from ..common.charts import described
from .differences import LEVEL
from .loading import REFERENCES
from .numbers import Scale
from .results import Comparison, Row

_KINDS = ("Better", "Worse", "Not distinguishable")
_FIGURES = ("difference", "low", "high", "same")


def average_difference(row: Row) -> dict[str, object]:
    """Of the average, for the table of rows; empty where nothing is known of it."""
    names = [n for n in _FIGURES if f"{n}/average" in row.figures and row.cells]
    return {f"average_{name}": row.first(f"{name}/average") for name in names}


def verdicts(comparison: Comparison) -> Iterator[str]:
    """Sentences on the averages of merged models, and on where there are no intervals."""
    base = comparison.baseline
    merged = [row for row in comparison.listed() if row.cells and not row.is_reference]
    found: dict[str, list[str]] = {kind: [] for kind in _KINDS}
    for row in merged:
        difference = average_difference(row)
        if difference.get("average_same") is not None:
            kind, text = _verdict(difference, comparison.scale)
            found[kind].append(f"{row.label} {text}")
    groups = [
        f"{kind} {'than' if kind != _KINDS[2] else 'from'} {base.label}: {', '.join(rows)}."
        for kind, rows in found.items()
        if rows and base
    ]
    if groups:
        several = any(len(row.cells) > 1 for row in merged)
        over = "test samples and seeds" if several else "test samples"
        yield (
            f"{' '.join(groups)} Differences of the average with {LEVEL:.0%} intervals"
            f" over {over}."
        )
    yield from _reasons(merged)
    yield from _choices(comparison)
    yield from _doubts(comparison)


def _verdict(difference: dict, scale: Scale) -> tuple[str, str]:
    value, low, high, same = (difference[f"average_{name}"] for name in _FIGURES)
    kind = _KINDS[2] if same else _KINDS[not value > 0]
    sign = "+" if value > 0 else ""
    return kind, f"{sign}{scale.text(value)} ({scale.text(low)} to {scale.text(high)})"


def _reasons(rows: list[Row]) -> Iterator[str]:
    """A sentence for each reason why rows have no interval."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if reason := row.first("no_interval"):
            found.setdefault(reason, []).append(row.label)
    for reason, labels in found.items():
        yield f"No intervals for {', '.join(labels)}: {reason}."


def _choices(comparison: Comparison) -> Iterator[str]:
    """What was chosen for rows with a choice."""
    rows = [(row, row.artifacts("selection")) for row in comparison.listed()]
    for row, choices in rows:
        found = {described(choice["chosen"]) for _, choice in choices}
        if found:
            yield f"Chosen for {row.label}: {', or '.join(sorted(found))}."
    if any(row.is_reference and choices for row, choices in rows):
        yield "Rows of select=oracle are chosen by test labels: upper bounds, no methods."


def _doubts(comparison: Comparison) -> Iterator[str]:
    """Experts that know less of their own task than the model that they began as."""
    rows = {row.method: row for row in comparison.finished if row.is_reference}
    if not rows.keys() >= {*REFERENCES}:
        return
    doubtful = []
    for task in comparison.tasks:
        source = f"{task}/{comparison.metric}"
        base, expert = (rows[name].over_seeds(source) for name in REFERENCES)
        gain = expert.mean - base.mean if base and expert else 0.0
        if gain and (gain < 0) == comparison.higher(task):
            doubtful.append(task)
    if doubtful:
        yield (
            f"Worse than the pretrained model are the experts on {', '.join(doubtful)}: do"
            " the classes have the order, and texts or images the form, of their training?"
        )
