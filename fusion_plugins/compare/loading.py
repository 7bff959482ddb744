"""The cells of a results folder as a DataFrame, from which every table is made."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import pandas as pd

from .differences import add_differences, differences_frame
from .store import Results

PRETRAINED, EXPERTS = "pretrained", "experts"
# Rows that no method makes: the base, and every expert on its own task.
REFERENCES = (PRETRAINED, EXPERTS)
ORACLE = "oracle"  # score of `method=select` that reads test labels


def load_results(
    folder: str | os.PathLike, baseline: str | None = None
) -> pd.DataFrame:
    """The finished cells of a results folder; every table is made of them.

    Args:
        folder: As ``fusion_bench --config-name compare`` wrote it.
        baseline: What differences are to: a label, a method, or ``none``; None for what
            the comparison was given.

    Returns:
        One row per cell. Columns: ``id``, ``label`` (method with its options), ``method``,
        ``seed``, ``status`` ("done" or "failed"), ``error``; ``<task>/<metric>`` and
        ``average/<metric>`` in the metric's own unit (``average/score`` of unlike metrics:
        as the next); ``normalised_average`` and ``normalised/<task>``, shares of the
        experts' (1 = as good); ``seconds/...``,
        ``peak_mib/...``, ``own_mib/...`` (the peak without what the process held before),
        ``energy_joules/...``, ``parameters/...``, ``samples/evaluated`` and ``adapted``,
        ``samples_per_second/...``; ``record``, the cell's whole file; and of the row as a
        whole ``baseline``, and for ``average`` and every task ``difference/<task>`` (mean
        over seeds, minus the baseline's), ``low/<task>`` and ``high/<task>`` (its 95 %
        interval), ``p/<task>`` (McNemar), ``same/<task>`` (True: not distinguishable), or
        ``no_interval``, the reason why there are none. What a cell does not have is None.

    Raises:
        ValueError: The folder holds no results, or a damaged file.
    """
    results = Results(folder).existing()
    about = results.described()
    return frame_of(results.records(), baseline or about.get("baseline"))


def load_differences(
    folder: str | os.PathLike, baseline: str | None = None
) -> pd.DataFrame:
    """The differences of `load_results`, one line per row and task.

    Args:
        folder: As for `load_results`.
        baseline: As for `load_results`.

    Returns:
        Columns ``label``, ``baseline``, ``task``, ``difference``, ``low``, ``high``, ``p``
        and ``same``.

    Raises:
        ValueError: As for `load_results`.
    """
    return differences_frame(load_results(folder, baseline))


def frame_of(records: Iterable[Mapping], baseline: str | None = None) -> pd.DataFrame:
    """The frame of `load_results` from the files' contents."""
    lines = [_line(record) for record in records]
    names = list(dict.fromkeys(name for line in lines for name in line))
    values = [[line.get(name) for name in names] for line in lines]
    cells = pd.DataFrame(values, columns=names, dtype=object)
    return add_differences(cells, baseline, REFERENCES)


def _line(record: Mapping) -> dict[str, object]:
    error = record["error"] or {}
    line = {key: record[key] for key in ("id", "label", "method", "seed", "status")}
    line["error"] = ": ".join(error[key] for key in ("type", "message") if key in error)
    line |= _flat({**record["tasks"], "average": record["average"]})
    line["normalised_average"] = record["normalised_average"]
    line |= _flat(
        {
            "seconds": record["seconds"],
            "samples": record.get("samples") or {},
            "samples_per_second": _rates(record),
            "peak_mib": record["peak_memory_mib"],
            "own_mib": _own_memory(record),
            "energy_joules": record.get("energy_joules") or {},
            "parameters": record["parameters"],
            "normalised": record["normalised"] or {},
        }
    )
    return line | {"record": record}


def _rates(record: Mapping) -> dict[str, float]:
    """Samples per second of evaluation, and of what learns from samples."""
    samples, seconds = record.get("samples") or {}, record["seconds"]
    pairs = (("evaluate", "evaluated"), ("merge", "adapted"))
    return {
        part: samples[kind] / seconds[part]
        for part, kind in pairs
        if samples.get(kind) and seconds[part]
    }


def _own_memory(record: Mapping) -> dict[str, float]:
    """The peak without what the process held when the cell began."""
    before, peak = record.get("memory_before_mib") or {}, record["peak_memory_mib"]
    return {
        kind: max(peak[kind] - held, 0.0)
        for kind, held in before.items()
        if held is not None and peak[kind] is not None
    }


def _flat(groups: Mapping[str, Mapping]) -> dict[str, object]:
    return {
        f"{g}/{name}": v for g, group in groups.items() for name, v in group.items()
    }
