"""A results folder in memory: one row per label, its cells and its failures.

Only JSON was read; torch is not imported, so a report can be made anywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

from .numbers import Scale, Spread

REFERENCES = ("pretrained", "experts")  # measured for orientation; nothing is merged


@dataclass
class Row:
    """Everything known about one label: its finished cells and its failed ones."""

    label: str
    method: str
    cells: list[dict] = field(default_factory=list)
    failures: list[dict] = field(default_factory=list)
    number: int = 0  # its place by average, counted from 1; names it in the charts

    @property
    def is_reference(self) -> bool:
        return self.method in REFERENCES

    @property
    def any_cell(self) -> dict:
        return (self.cells or self.failures)[0]

    @property
    def seeds(self) -> list[int]:
        return [cell.get("seed") for cell in self.cells]

    def over_seeds(self, *path: str) -> Spread | None:
        """Spread of the figure found under `path` in every finished cell."""
        return Spread.of(dig(cell, path) for cell in self.cells)

    def average(self, metric: str) -> Spread | None:
        return self.over_seeds("average", metric)

    def artifacts(self, name: str) -> list[tuple[int, dict]]:
        """(seed, artifact) of every finished cell that has one."""
        found = (
            (c.get("seed"), (c.get("artifacts") or {}).get(name)) for c in self.cells
        )
        return [(seed, artifact) for seed, artifact in found if artifact]


@dataclass
class Comparison:
    """A results folder in memory. `rows` are best first; failed methods come last."""

    title: str
    tasks: list[str]
    metric: str
    higher_is_better: bool
    rows: list[Row]
    about: dict  # compare.json as it is

    @property
    def finished(self) -> list[Row]:
        return [row for row in self.rows if row.cells]

    @property
    def failures(self) -> list[tuple[Row, dict]]:
        return [(row, cell) for row in self.rows for cell in row.failures]

    @cached_property
    def scale(self) -> Scale:
        return self.scale_of(self.metric, self.higher_is_better)

    def scale_of(self, metric: str, is_share: bool = True) -> Scale:
        """Percent when higher is better and every value is between 0 and 1."""
        values = [
            value
            for row in self.finished
            for cell in row.cells
            for result in cell["tasks"].values()
            if (value := result.get(metric)) is not None and math.isfinite(value)
        ]
        return Scale(is_share and bool(values) and all(0 <= v <= 1 for v in values))

    @property
    def other_metrics(self) -> list[str]:
        """Further metrics in the order in which the cells name them."""
        names: dict[str, None] = {}
        for row in self.finished:
            for cell in row.cells:
                for result in cell["tasks"].values():
                    names.update(dict.fromkeys(result))
        names.pop(self.metric, None)
        return list(names)

    def row(self, method: str) -> Row | None:
        """The finished row of a pseudo method such as ``experts``."""
        return next((row for row in self.finished if row.method == method), None)

    def best(self) -> Row | None:
        """The best merged model by average."""
        merged = (row for row in self.finished if not row.is_reference)
        averages = ((row, row.average(self.metric)) for row in merged)
        return next((row for row, mean in averages if mean and mean.finite), None)


def dig(cell: dict, path: tuple[str, ...]):
    """The value under nested keys, None where one is missing."""
    found = cell
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found
