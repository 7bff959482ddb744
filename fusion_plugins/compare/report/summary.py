"""The page's first lines: what was compared, what came out, on what it ran."""

from __future__ import annotations

from .numbers import Scale, count_text, date_text, duration_text
from .results import Comparison, dig


def summary(comparison: Comparison) -> dict:
    """Tiles (label, value, note), a sentence, and facts shared by all cells."""
    return {
        "sentence": _sentence(comparison),
        "tiles": [tile for tile in _tiles(comparison) if tile],
        "setup": _setup(comparison),
        "versions": _shared(comparison, "versions"),
    }


def _sentence(comparison: Comparison) -> str:
    best = comparison.best()
    if best is None:
        failed = len({row.label for row, _ in comparison.failures})
        return (
            f"No merged model was measured; {count_text(failed, 'method')} failed."
            if failed
            else ""
        )
    text = f"{best.label} is best: {_average(comparison, best)}{_what(comparison)}"
    share = best.over_seeds("normalised_average")
    if share and share.finite:
        text += (
            f", {Scale(percent=True).text(share.mean)}\u00a0% of the individual experts"
        )
    return text + "."


def _what(comparison: Comparison) -> str:
    unit = f"\u00a0{comparison.scale.unit}" if comparison.scale.unit else ""
    count = len(comparison.tasks)
    over = (
        f"on average over {count_text(count, 'task')}" if count != 1 else "on one task"
    )
    return f"{unit} {comparison.metric} {over}"


def _average(comparison: Comparison, row) -> str:
    return comparison.scale.spread(row.average(comparison.metric))


def _tiles(comparison: Comparison) -> list[tuple[str, str, str] | None]:
    unit = comparison.scale.unit
    note = f"{unit} average {comparison.metric}".strip()
    best, experts = comparison.best(), comparison.row("experts")
    pretrained = comparison.row("pretrained")
    return [
        (
            ("Best merged model", best.label, f"{_average(comparison, best)} {note}")
            if best
            else None
        ),
        ("Experts", _average(comparison, experts), note) if experts else None,
        ("Pretrained", _average(comparison, pretrained), note) if pretrained else None,
        _counts(comparison),
        _time(comparison),
    ]


def _counts(comparison: Comparison) -> tuple[str, str, str]:
    finished = sum(len(row.cells) for row in comparison.finished)
    failed = len(comparison.failures)
    note = (
        count_text(finished, "run")
        + " finished"
        + (f", {failed} failed" if failed else "")
    )
    return ("Methods", str(len(comparison.rows)), note)


def _time(comparison: Comparison) -> tuple[str, str, str] | None:
    spent = [
        dig(cell, ("seconds", part)) or 0.0
        for row in comparison.finished
        for cell in row.cells
        for part in ("merge", "evaluate")
    ]
    if not sum(spent):
        return None
    return ("Time", duration_text(sum(spent)), "merging and evaluating, all runs")


def failures(comparison: Comparison) -> list[dict]:
    """Failed runs; seeds of one method with the same error are one entry."""
    groups: dict[tuple, dict] = {}
    for row, cell in comparison.failures:
        error = cell.get("error") or {}
        kind = error.get("type") or "Error"
        message = error.get("message") or "No message was recorded."
        entry = groups.setdefault(
            (row.label, kind, message),
            {
                "row": row,
                "type": kind,
                "message": message,
                "traceback": error.get("traceback"),
                "seeds": [],
                "anchor": row.label not in {label for label, _, _ in groups},
            },
        )
        entry["seeds"].append(cell.get("seed"))
    return list(groups.values())


def _setup(comparison: Comparison) -> list[tuple[str, str]]:
    """What every cell shares; what differs is listed with each method instead."""
    device, commit = (_shared(comparison, key) for key in ("device", "git_commit"))
    facts = [
        ("Started", date_text(comparison.about.get("started"))),
        ("Tasks", ", ".join(comparison.tasks)),
        ("Device", device),
        ("Commit of the working folder", commit),
    ]
    return [(name, value) for name, value in facts if value]


def _shared(comparison: Comparison, key: str):
    """The value all cells agree on, else None."""
    cells = [cell for row in comparison.rows for cell in row.cells + row.failures]
    first = cells[0].get(key)
    return first if all(cell.get(key) == first for cell in cells) else None
