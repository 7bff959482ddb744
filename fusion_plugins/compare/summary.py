"""From a folder's records to rows: shares of the experts, means and spreads over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .names import EXPERTS, PRETRAINED


@dataclass(frozen=True)
class Number:
    """Mean over seeds and sample standard deviation; None with a single seed."""

    mean: float
    spread: float | None = None


@dataclass
class Row:
    """One line of the tables: a method with its options, over its seeds.

    Attributes:
        label, method: Name with options, and bare name.
        seeds: Of the finished cells.
        tasks: Main metric per task.
        average, normalised: Over the tasks; `normalised` as a share of the experts'.
        merge_seconds, evaluate_seconds, memory_mib, added_parameters: Costs.
        errors: One per failed cell, with its seed.
    """

    label: str
    method: str
    seeds: list[int]
    tasks: dict[str, Number] = field(default_factory=dict)
    average: Number | None = None
    normalised: Number | None = None
    merge_seconds: Number | None = None
    evaluate_seconds: Number | None = None
    memory_mib: Number | None = None
    added_parameters: int | None = None
    errors: list[str] = field(default_factory=list)


@dataclass
class Summary:
    """Everything the tables show.

    Attributes:
        percent: Whether the metric is a share, shown in percent.
        published: As in ``compare.json``; in percent already.
    """

    title: str
    tasks: list[str]
    metric: str | None
    higher_is_better: bool
    percent: bool
    rows: list[Row]
    published: Mapping | None = None


def with_shares(records: Sequence[Mapping]) -> list[dict]:
    """Records with `normalised` filled where the experts were measured on the same pools.

    normalised[task] = value / expert's value, inverted where lower is better.
    """
    experts = {
        record["identity"]["pools"]: record
        for record in records
        if record["method"] == EXPERTS and record["status"] == "done"
    }
    return [
        {**record, **_shares(record, experts.get(record["identity"]["pools"]))}
        for record in records
    ]


def _shares(record: Mapping, experts: Mapping | None) -> dict:
    comparable = experts is not None and record["metric"] == experts["metric"]
    if record["status"] != "done" or not comparable:
        return {"normalised": None, "normalised_average": None}
    metric = record["metric"]
    shares = {}
    for task, numbers in record["tasks"].items():
        value = numbers[metric]
        expert = experts["tasks"].get(task, {}).get(metric)
        above, below = (
            (value, expert) if record["higher_is_better"] else (expert, value)
        )
        if expert is not None and below:
            shares[task] = above / below
    average = statistics.fmean(shares.values()) if shares else None
    return {"normalised": shares or None, "normalised_average": average}


def summarise(description: Mapping, records: Sequence[Mapping]) -> Summary:
    """Group records by label, in the order in which they were asked for.

    Raises:
        ValueError: Cells report different main metrics.
    """
    done = [record for record in records if record["status"] == "done"]
    metrics = {(r["metric"], r["higher_is_better"]) for r in done}
    if len(metrics) > 1:
        raise ValueError(
            f"The cells have different main metrics {sorted(m for m, _ in metrics)}; give"
            " metric=<name> and run them again."
        )
    metric, higher = next(iter(metrics), (None, True))
    labels = dict.fromkeys(record["label"] for record in _in_order(records))
    tasks = list(description["tasks"]) or list(done[0]["tasks"] if done else [])
    values = [n[metric] for r in done for n in r["tasks"].values()]
    return Summary(
        title=str(description["title"]),
        tasks=tasks,
        metric=metric,
        higher_is_better=higher,
        percent=higher and all(0 <= value <= 1 for value in values),
        rows=[_row([r for r in records if r["label"] == label]) for label in labels],
        published=description.get("published"),
    )


def _in_order(records: Sequence[Mapping]) -> list[Mapping]:
    """References first, then as the comparison listed them, then by label."""
    references = (PRETRAINED, EXPERTS)

    def key(record: Mapping):
        method = record["method"]
        first = references.index(method) if method in references else len(references)
        return first, record.get("order", len(records)), record["label"]

    return sorted(records, key=key)


def _row(records: Sequence[Mapping]) -> Row:
    records = sorted(records, key=lambda record: record["seed"])
    done = [record for record in records if record["status"] == "done"]
    row = Row(records[0]["label"], records[0]["method"], [r["seed"] for r in done])
    row.errors = [
        f"seed {r['seed']}: {r['error']['type']}: {r['error']['message']}"
        for r in records
        if r["status"] != "done"
    ]
    if not done:
        return row
    metric = done[0]["metric"]
    for task in done[0]["tasks"]:
        row.tasks[task] = _number([r["tasks"].get(task, {}).get(metric) for r in done])
    row.average = _number([r["average"].get(metric) for r in done])
    row.normalised = _number([r["normalised_average"] for r in done])
    row.merge_seconds = _number([r["seconds"]["merge"] for r in done])
    row.evaluate_seconds = _number([r["seconds"]["evaluate"] for r in done])
    kind = "cuda" if done[0]["peak_memory_mib"]["cuda"] is not None else "cpu"
    row.memory_mib = _number([r["peak_memory_mib"][kind] for r in done])
    row.added_parameters = done[0]["parameters"]["added"]
    return row


def _number(values: Sequence[float | None]) -> Number | None:
    if not values or any(value is None for value in values):
        return None
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Number(statistics.fmean(values), spread)
