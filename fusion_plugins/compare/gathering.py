"""From the cells of a results folder to its tables and report; needs no pool, no model."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence

from ..common import get_logger, require
from .columns import cells_csv, frame_csv, rows_frame
from .differences import differences_frame, measured_on
from .files import write_json, write_text
from .latex import latex_table
from .loading import EXPERTS, frame_of
from .results import Comparison
from .store import Results
from .tables import TableOptions, make_grid, markdown_table

log = get_logger(__name__)


def gather(
    folder: str | os.PathLike, options: TableOptions | None = None
) -> Comparison:
    """Fill in the shares of the experts, write the tables, the figures and the report.

    Writes ``results.csv`` (a line per row), ``cells.csv`` (a line per cell),
    ``differences.csv``, ``results.md``, ``results.tex``, ``figures/`` and
    ``report.html``. May run at any time, also while other processes add cells.

    Args:
        folder: The results folder.
        options: What Markdown and LaTeX show.

    Raises:
        ValueError: The folder holds no results, or cells that do not belong together.
        ModuleNotFoundError: As :func:`require_report`.
    """
    require_report()
    results = Results(folder).existing()
    with results.locked():
        records = results.records()
        filled = fill_shares(records)
        for old, new in zip(records, filled, strict=True):
            if old != new:
                write_json(results.path(new), new)
        about = results.described()
        comparison = Comparison(about, frame_of(filled, about.get("baseline")))
        for name, text in (
            ("results.csv", frame_csv(rows_frame(comparison))),
            ("cells.csv", cells_csv(comparison)),
            ("differences.csv", frame_csv(differences_frame(comparison.cells))),
            ("results.md", markdown_table(comparison, options)),
            ("results.tex", latex_table(comparison, options)),
        ):
            write_text(results.folder / name, text)
        _write_report(results, comparison)
    return comparison


def check_tables(
    about: Mapping, records: Sequence[dict], options: TableOptions
) -> None:
    """Lay out the tables of these records, to see that what `options` name is there."""
    found = Comparison(about, frame_of(records))
    make_grid(found, options)
    for row in found.published.get("rows") or ():
        if unknown := [t for t in row.get("tasks") or () if t not in found.tasks]:
            label, known = row["label"], found.tasks
            log.warning("published: %s has %s; the tasks are %s", label, unknown, known)


def require_report() -> None:
    """Raise unless what the report needs is installed.

    Raises:
        ModuleNotFoundError: It is not; the message says how to install it.
    """
    for module in ("matplotlib", "jinja2"):
        require(module, "The report of a comparison")


def _write_report(results: Results, comparison: Comparison) -> None:
    from .pictures import baseline_of, draw_pictures, save_all
    from .report import render

    baseline = baseline_of(comparison)
    pictures = draw_pictures(comparison, baseline)
    save_all(pictures, results.folder / "figures")
    page = render(comparison, pictures, baseline)
    write_text(results.folder / "report.html", page)


def fill_shares(records: Sequence[Mapping]) -> list[dict]:
    """Records with `normalised` where the experts were measured on the same pools.

    normalised[task] = value / expert's value, inverted where lower is better. Their mean
    is also the average of unlike metrics.
    """
    experts = {
        measured_on(record): record
        for record in records
        if record["method"] == EXPERTS and record["status"] == "done"
    }
    return [{**r, **_shares(r, experts.get(measured_on(r)))} for r in records]


def _shares(record: Mapping, experts: Mapping | None) -> dict:
    metric, found = record["metric"], {}
    lower = record.get("lower_is_better", ())
    theirs: Mapping = {}
    if experts is not None and metric == experts["metric"]:
        theirs = experts["tasks"]
    for task, numbers in record["tasks"].items() if theirs else ():
        pair = numbers[metric], theirs.get(task, {}).get(metric)
        higher = record["higher_is_better"] and task not in lower
        above, below = pair if higher else reversed(pair)
        if None not in pair and below:
            found[task] = above / below
    average = statistics.fmean(found.values()) if found else None
    shares = {"normalised": found or None, "normalised_average": average}
    return shares | ({"average": {metric: average}} if "metrics" in record else {})
