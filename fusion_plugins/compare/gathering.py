"""From the cells of a results folder to its tables and report; needs no pool, no model."""

from __future__ import annotations

from pathlib import Path

from .files import write_json, write_text
from .latex import latex_table
from .spreadsheet import csv_cells, csv_rows
from .store import Results
from .summary import Summary, summarise, with_shares
from .tables import markdown_table


def gather(folder: str | Path) -> Summary:
    """Fill in the shares of the experts, write the tables and the report.

    Writes ``results.csv`` (a line per row), ``cells.csv`` (a line per cell),
    ``results.md``, ``results.tex`` and ``report.html``. May run at any time, also while
    other processes add cells.

    Raises:
        ValueError: The folder holds no results, or cells that do not belong together.
    """
    results = Results(folder)
    with results.locked() if results.cells.is_dir() else _nothing(folder):
        description = results.description()
        found = results.records()
        if description is None or not found:
            _nothing(folder)
        records = with_shares(found)
        for old, new in zip(found, records, strict=True):
            if old != new:
                write_json(results.cells / f"{new['id']}.json", new)
        summary = summarise(description, records)
        for name, text in (
            ("results.csv", csv_rows(summary)),
            ("cells.csv", csv_cells(records)),
            ("results.md", markdown_table(summary)),
            ("results.tex", latex_table(summary)),
        ):
            write_text(results.folder / name, text)
        _write_report(results.folder)
    return summary


def _nothing(folder: str | Path):
    raise ValueError(
        f"{folder} holds no results of a comparison: it needs compare.json and cells/."
        " Run fusion_bench --config-name compare results=<folder> first."
    )


def _write_report(folder: Path) -> None:
    from .report import write_report

    write_report(folder)
