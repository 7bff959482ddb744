"""The summary and the cells as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence

from .summary import Number, Row, Summary


def csv_rows(summary: Summary) -> str:
    """One line per row of the table, numbers not rounded, spreads in columns of their own."""
    numbers: dict[str, Callable[[Row], Number | None]] = {
        **{task: (lambda row, t=task: row.tasks.get(t)) for task in summary.tasks},
        "average": lambda row: row.average,
        "normalised_average": lambda row: row.normalised,
        "merge_seconds": lambda row: row.merge_seconds,
        "evaluate_seconds": lambda row: row.evaluate_seconds,
        "peak_memory_mib": lambda row: row.memory_mib,
    }
    lines = []
    for row in summary.rows:
        line: dict[str, object] = {
            "label": row.label,
            "method": row.method,
            "metric": summary.metric,
            "seeds": " ".join(map(str, row.seeds)),
            "failed": len(row.errors),
            "error": row.errors[0] if row.errors else "",
            "added_parameters": row.added_parameters,
        }
        for name, get in numbers.items():
            number = get(row) or Number(None)
            line |= {name: number.mean, f"{name}_std": number.spread}
        lines.append(line)
    return _csv(lines)


def csv_cells(records: Sequence[Mapping]) -> str:
    """One line per cell, with every metric of every task."""
    lines = []
    for record in records:
        line = {key: record[key] for key in ("id", "label", "method", "seed", "status")}
        error = record["error"] or {}
        line["error"] = ": ".join(error[k] for k in ("type", "message") if k in error)
        for task, values in record["tasks"].items():
            line |= {f"{task}/{metric}": value for metric, value in values.items()}
        line |= {f"average/{m}": value for m, value in record["average"].items()}
        line["normalised_average"] = record["normalised_average"]
        line |= {f"seconds/{k}": v for k, v in record["seconds"].items()}
        line |= {f"peak_mib/{k}": v for k, v in record["peak_memory_mib"].items()}
        line |= {f"parameters/{k}": v for k, v in record["parameters"].items()}
        lines.append(line)
    return _csv(lines)


def _csv(lines: Sequence[Mapping]) -> str:
    names = list(dict.fromkeys(name for line in lines for name in line))
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()
