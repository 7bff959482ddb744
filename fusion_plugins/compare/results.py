"""The results model: a DataFrame of cells, from which every table and chart is made."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from .loading import ORACLE, REFERENCES, load_results
from .numbers import PERCENT, SHARE, Scale, Spread, seeds_text
from .store import Results


class Row:
    """One line of every table: a method with its options, over its seeds.

    Attributes:
        figures: The finished cells of `load_results`, by seed.
        cells, failures: The files' contents of the finished and of the failed cells.
        number: Its place by average, counted from 1; names it in the charts.
    """

    def __init__(self, label: str, cells: pd.DataFrame):
        done, records = cells["status"] == "done", cells["record"]
        self.label, self.figures, self.number = label, cells[done], 0
        self.cells: list[dict] = list(records[done])
        self.failures: list[dict] = list(records[~done])

    @property
    def any_cell(self) -> dict:
        return (self.cells or self.failures)[0]

    @property
    def method(self) -> str:
        return self.any_cell["method"]

    @property
    def is_reference(self) -> bool:
        """Whether it is no method: the base, the experts, and what test labels chose."""
        chosen = self.any_cell.get("overrides", {}).get("select")
        return self.method in REFERENCES or chosen == ORACLE

    @property
    def seeds(self) -> list[int]:
        return list(self.figures["seed"])

    def errors(self) -> dict[str, list[dict]]:
        """Each error as a line with its seeds -> the failed cells."""
        found: dict[str, list[dict]] = {}
        for cell in self.failures:
            error = f"{cell['error']['type']}: {cell['error']['message']}"
            found.setdefault(error, []).append(cell)
        return {
            f"{seeds_text(cell['seed'] for cell in cells)}: {error}": cells
            for error, cells in found.items()
        }

    def over_seeds(self, column: str) -> Spread | None:
        """Spread of a column over the finished cells."""
        return Spread.of(self._values[column]) if column in self._values else None

    def first(self, column: str) -> Any:
        """A column's value in the first finished cell; None without one."""
        return next(iter(self._values.get(column, ())), None)

    @cached_property
    def _values(self) -> dict[str, list]:
        return self.figures.to_dict("list")  # reading one value of a frame is slow

    def artifacts(self, name: str) -> list[tuple[int, dict]]:
        """(seed, artifact) of every finished cell that has one."""
        found = ((cell["seed"], cell["artifacts"].get(name)) for cell in self.cells)
        return [(seed, artifact) for seed, artifact in found if artifact]


@dataclass
class Comparison:
    """A results folder in memory.

    Attributes:
        about: What ``compare.json`` says.
        cells: As `load_results` gives them.
        rows: Best first, failed methods last.
        metrics: Task -> its own main metric, where these are unlike: the average is then
            that of shares of the experts' results. Else empty.

    Raises:
        ValueError: The cells report different main metrics.
    """

    about: Mapping
    cells: pd.DataFrame
    rows: list[Row] = field(init=False)
    metric: str = field(init=False)
    higher_is_better: bool = field(init=False)
    metrics: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        done = self.cells[self.cells["status"] == "done"]["record"]
        kinds = {(record["metric"], record["higher_is_better"]) for record in done}
        own = [pair for r in done for pair in r.get("metrics", {}).items()]
        self.metrics = dict(own)
        self._lower = {task for r in done for task in r.get("lower_is_better", ())}
        if len(kinds) > 1 or len(set(own)) > len(self.metrics):
            names = sorted({name for name, _ in kinds} | {name for _, name in own})
            raise ValueError(
                f"The cells have different main metrics {names};"
                " give metric=<name> and run them again."
            )
        self.metric, self.higher_is_better = next(iter(kinds), ("accuracy", True))
        self.tasks: list[str] = list(
            self.about["tasks"] or next((record["tasks"] for record in done), ())
        )
        by_label = self.cells.sort_values("seed", kind="stable").groupby("label")
        self.rows = sorted((Row(*found) for found in by_label), key=self._rank)
        for number, row in enumerate(self.rows, start=1):
            row.number = number

    @classmethod
    def read(cls, folder: str | os.PathLike) -> Comparison:
        """The comparison of a results folder; raises as `load_results` does."""
        return cls(Results(folder).existing().described(), load_results(folder))

    @property
    def baseline(self) -> Row | None:
        """The row that differences are to."""
        names = set(self.cells["baseline"]) if "baseline" in self.cells else ()
        return next((row for row in self.rows if row.label in names), None)

    def _rank(self, row: Row) -> tuple[bool, float, str]:
        average = self.average(row)
        sign = -1 if self.higher_is_better else 1
        if average is None or not average.finite:
            return True, 0.0, row.label
        return False, sign * average.mean, row.label

    @property
    def title(self) -> str:
        return str(self.about["title"])

    @property
    def published(self) -> Mapping:
        return self.about.get("published") or {}

    def listed(self) -> list[Row]:
        """References first, then as the comparison listed them, then by label."""

        def place(row: Row) -> tuple:
            others = [row.method != reference for reference in REFERENCES]
            orders = (cell["order"] for cell in row.cells + row.failures)
            return all(others), others, min(orders), row.label

        return sorted(self.rows, key=place)

    @property
    def finished(self) -> list[Row]:
        return [row for row in self.rows if row.cells]

    @property
    def measure(self) -> str:
        """What the average is of, in words."""
        return SHARE if self.metrics else self.metric

    def higher(self, task: str) -> bool:
        """The direction of a task's main metric, or of the average."""
        return self.higher_is_better and task not in self._lower

    @cached_property
    def scale(self) -> Scale:
        """Of the average and, unless they have their own, of all tasks."""
        return PERCENT if self.metrics else self._scale(self.tasks)

    def scale_of(self, task: str) -> Scale:
        """Of a task, or of the average."""
        return self._scale([task]) if task in self.metrics else self.scale

    def _scale(self, tasks: Sequence[str]) -> Scale:
        """Percent when higher is better and every value is between 0 and 1."""
        names = [f"{task}/{self.metric}" for task in tasks]
        found = self.cells[self.cells.columns.intersection(names)].to_numpy().ravel()
        values = [v for v in found if v is not None and math.isfinite(v)]
        shares = bool(values) and all(0 <= v <= 1 for v in values)
        return Scale(shares and all(map(self.higher, tasks)))

    def average(self, row: Row) -> Spread | None:
        return row.over_seeds(f"average/{self.metric}")

    def averaged(self, row: Row, task: str) -> Spread | None:
        """What the average is the mean of."""
        if self.metrics:
            return row.over_seeds(f"normalised/{task}")
        return row.over_seeds(f"{task}/{self.metric}")

    @property
    def other_metrics(self) -> list[str]:
        """Further metrics in the order in which the cells name them."""
        results = (
            r for row in self.finished for c in row.cells for r in c["tasks"].values()
        )
        names = dict.fromkeys(name for result in results for name in result)
        return [name for name in names if name != self.metric]

    def row(self, method: str) -> Row | None:
        """The finished row of a reference."""
        return next((row for row in self.finished if row.method == method), None)

    def best(self) -> Row | None:
        """The best merged model by average."""
        merged = (row for row in self.finished if not row.is_reference)
        averages = ((row, self.average(row)) for row in merged)
        return next((row for row, mean in averages if mean and mean.finite), None)


def shorter_averages(comparison: Comparison) -> list[str]:
    """A sentence for every row whose average is not over all tasks."""
    tasks = comparison.tasks
    counts = {
        row.label: sum(comparison.averaged(row, task) is not None for task in tasks)
        for row in comparison.finished
    }
    if comparison.metrics and not any(counts.values()):
        return ["It needs the row experts."]
    return [
        f"That of {label} is over {count} of them."
        for label, count in counts.items()
        if count < len(tasks)
    ]
