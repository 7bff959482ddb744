"""Paired differences of the rows to a baseline, as columns of the results frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from .files import Answers

NONE = "none"  # the baseline that is none
LEVEL = 0.95
_RESAMPLES, _SEED = 2000, 0
_FIGURES = ("difference", "low", "high", "p", "same")

Rows = Mapping[str, Sequence[Mapping]]  # label -> records of its finished cells


class _NotPaired(Exception):
    """Why two rows cannot be compared sample by sample."""


def add_differences(
    cells: pd.DataFrame, baseline: str | None, references: Sequence[str]
) -> pd.DataFrame:
    """The results frame with `baseline`, the figures of each row, and `no_interval`.

    Args:
        cells: Of :func:`~.results.load_results`.
        baseline: A label, a method, `NONE`, or None for the first merged row.
        references: Methods that merge nothing.
    """
    done = cells[cells["status"] == "done"] if len(cells) else cells
    by_label = done.sort_values("seed", kind="stable").groupby("label", sort=False)
    rows = {label: list(found["record"]) for label, found in by_label}
    chosen = None if baseline == NONE else _choose(rows, baseline, references)
    if chosen is None:
        missing = baseline not in (None, NONE) and bool(rows)
        reason = f"the baseline {baseline} has no finished cell" if missing else None
        return cells.assign(baseline=None, no_interval=reason)
    lines = {
        label: _figures(records, rows[chosen])
        for label, records in rows.items()
        if label != chosen
    }
    found = [name for line in lines.values() for name in line]
    names = list(dict.fromkeys(["no_interval", *found]))
    added = [[*map(lines.get(label, {}).get, names)] for label in cells["label"]]
    columns = pd.DataFrame(added, cells.index, names, dtype=object)
    columns.insert(0, "baseline", chosen)
    return pd.concat([cells, columns], axis=1)


def _choose(rows: Rows, wanted: str | None, references: Sequence[str]) -> str | None:
    """The label of a row by label or method; without a wish the first merged one."""
    places = {
        label: (label != wanted, min(record["order"] for record in records), label)
        for label, records in rows.items()
    }
    for label in sorted(rows, key=places.__getitem__):
        method = rows[label][0]["method"]
        if wanted in (label, method) or (wanted is None and method not in references):
            return label
    return None


def _figures(ours: Sequence[Mapping], theirs: Sequence[Mapping]) -> dict[str, Any]:
    """Name of a column -> value, for one row."""
    try:
        found = _differences(ours, theirs)
    except _NotPaired as reason:
        return {"no_interval": str(reason)}
    return {
        f"{figure}/{task}": value
        for task, d in found.items()
        for figure, value in zip(
            _FIGURES, (d.value, d.low, d.high, d.p, not d.distinguishable), strict=True
        )
    }


def _differences(
    ours: Sequence[Mapping], theirs: Sequence[Mapping]
) -> dict[str, Difference]:
    """Task or "average" -> difference."""
    if {record["metric"] for record in (*ours, *theirs)} != {"accuracy"}:
        raise _NotPaired("only accuracy is a mean over samples")
    tasks = list(ours[0]["tasks"])
    if set(tasks) != set(theirs[0]["tasks"]):
        raise _NotPaired("other tasks than the baseline's")
    if len(set(map(measured_on, (*ours, *theirs)))) > 1:
        raise _NotPaired("measured on other models or data than the baseline")
    mine, base = ([_answers(r, tasks) for r in records] for records in (ours, theirs))
    for task in tasks:
        if len({answers[task].order for answers in (*mine, *base)}) > 1:
            raise _NotPaired(f"other samples of {task} than the baseline's")
    same_seeds = [r["seed"] for r in ours] == [r["seed"] for r in theirs]
    found, mean = compare(_right(mine, tasks), _right(base, tasks), same_seeds)
    return {"average": mean, **dict(zip(tasks, found, strict=True))}


def _right(
    models: Sequence[Mapping[str, Answers]], tasks: Sequence[str]
) -> list[np.ndarray]:
    """For each task, shape (models, samples)."""
    return [np.stack([answers[task].right for answers in models]) for task in tasks]


def measured_on(record: Mapping) -> tuple:
    """Pools, what they read, and the settings of the comparison."""
    identity = record["identity"]
    return identity["pools"], identity.get("inputs"), identity.get("settings")


def _answers(record: Mapping, tasks: Sequence[str]) -> dict[str, Answers]:
    stored = record.get("answers") or {}
    if set(tasks) - set(stored):
        raise _NotPaired("no results per sample in its cells or the baseline's")
    return {task: Answers.read(stored[task]) for task in tasks}


def differences_frame(cells: pd.DataFrame) -> pd.DataFrame:
    """The differences of a results frame, one line per row and task."""
    prefix = "difference/"
    tasks = [n.removeprefix(prefix) for n in cells.columns if n.startswith(prefix)]
    rows = cells.drop_duplicates("label")
    lines = [
        [row["label"], row["baseline"], task, *(row[f"{f}/{task}"] for f in _FIGURES)]
        for _, row in rows.iterrows()
        for task in tasks
        if row[f"same/{task}"] is not None
    ]
    names = ["label", "baseline", "task", *_FIGURES]
    return pd.DataFrame(lines, columns=names, dtype=object)


@dataclass(frozen=True)
class Difference:
    """Of two methods' accuracy.

    Attributes:
        value: Ours minus theirs; means over seeds.
        low, high: Confidence interval of `LEVEL`.
        p: Exact, of McNemar's test; None for a mean over tasks and for several seeds.
    """

    value: float
    low: float
    high: float
    p: float | None = None

    @property
    def distinguishable(self) -> bool:
        """By the test where there is one, else by the interval."""
        if self.p is not None:
            return self.p < 1 - LEVEL
        return not self.low <= 0 <= self.high


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Exact p of two methods being right equally often, shape (samples,), bool.

    Source: McNemar, Psychometrika 12 (1947): of the samples on which just one is right,
    each is so for half.
    """
    only_ours = int(np.count_nonzero(ours & ~theirs))
    apart = int(np.count_nonzero(ours != theirs))
    return float(binomtest(only_ours, apart).pvalue) if apart else 1.0


def compare(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], same_seeds: bool
) -> tuple[list[Difference], Difference]:
    """The difference on every task, and of the means over tasks.

    Intervals are percentiles of a bootstrap that draws test samples, within each task and
    for both methods alike, and seeds, for all tasks alike.

    Args:
        ours: For each task the right answers, shape (seeds, samples), bool.
        theirs: Likewise.
        same_seeds: Whether both have the same seeds: then these are drawn in pairs.
    """
    drawn = _resampled(ours, theirs, same_seeds)
    values = [float(a.mean() - b.mean()) for a, b in zip(ours, theirs, strict=True)]
    single = len(ours[0]) == len(theirs[0]) == 1
    tasks = [
        _difference(value, column, mcnemar(a[0], b[0]) if single else None)
        for value, column, a, b in zip(values, drawn.T, ours, theirs, strict=True)
    ]
    if len(tasks) == 1:
        return tasks, tasks[0]
    return tasks, _difference(float(np.mean(values)), drawn.mean(1))


def _difference(value: float, drawn: np.ndarray, p: float | None = None) -> Difference:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(value, float(low), float(high), p)


def _resampled(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], same_seeds: bool
) -> np.ndarray:
    """Differences of the resamples, shape (resamples, tasks).

    Samples with the same answers of all models are alike: how often each kind is drawn is
    multinomial, which gives the bootstrap's distribution without drawing samples one by
    one (seventy times faster on a task of 20,000 samples).
    """
    random = np.random.default_rng(_SEED)
    weights = _weights(random, len(ours[0]))
    other = weights if same_seeds else _weights(random, len(theirs[0]))
    signed = np.concatenate([weights, -other], axis=1)
    columns = []
    for pair in zip(ours, theirs, strict=True):
        kinds, counts = _kinds(np.concatenate(pair))
        samples = counts.sum()
        drawn = random.multinomial(samples, counts / samples, size=_RESAMPLES)
        columns.append(((drawn @ kinds / samples) * signed).sum(1))
    return np.stack(columns, axis=1)


def _weights(random: np.random.Generator, seeds: int) -> np.ndarray:
    """How much each seed counts in each resample, shape (resamples, seeds).

    One less than there are is drawn: then the variance of their mean is unbiased.

    Source: Rao and Wu, Journal of the American Statistical Association 83 (1988).
    """
    drawn = max(seeds - 1, 1)
    return random.multinomial(drawn, np.full(seeds, 1 / seeds), size=_RESAMPLES) / drawn


def _kinds(right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct columns, shape (kinds, models), and how many there are of each."""
    whole = np.int64 if len(right) < 63 else object  # of any size, and slow
    keys = 2 ** np.arange(len(right), dtype=whole) @ right.astype(whole)
    _, places, counts = np.unique(keys, return_index=True, return_counts=True)
    return right[:, places].T.astype(float), counts
