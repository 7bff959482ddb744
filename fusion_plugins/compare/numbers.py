"""Mean and spread over seeds, and how every output writes numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

MISSING = "–"
SHARE = "share of the experts"  # what an average of unlike metrics is of


@dataclass(frozen=True)
class Spread:
    """Mean of one figure over the seeds of a row.

    `deviation` is the sample standard deviation (division by n - 1), None for one seed.
    A value that is not finite makes the mean NaN: it is shown, never dropped.
    """

    mean: float
    deviation: float | None = None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """None unless every seed has the figure: seeds must not drop out silently."""
        given = list(values)
        found = [value for value in given if value is not None]
        if not found or len(found) < len(given):
            return None
        if not all(map(math.isfinite, found)):
            return cls(math.nan)
        deviation = statistics.stdev(found) if len(found) > 1 else None
        return cls(statistics.fmean(found), deviation)

    @property
    def finite(self) -> bool:
        return math.isfinite(self.mean)


@dataclass(frozen=True)
class Scale:
    """How values of one metric are written: as percent, or as they are."""

    percent: bool

    @property
    def factor(self) -> float:
        return 100.0 if self.percent else 1.0

    @property
    def unit(self) -> str:
        return "%" if self.percent else ""

    def text(self, value: float | None) -> str:
        if value is None:
            return MISSING
        if not math.isfinite(value):
            return "NaN"
        return f"{value * 100:.1f}" if self.percent else f"{value:.4g}"

    def spread(self, spread: Spread | None) -> str:
        """`88.0 ± 0.4`, `88.0` for one seed, a dash for none."""
        if spread is None or spread.deviation is None:
            return self.text(None if spread is None else spread.mean)
        return f"{self.text(spread.mean)} ± {self.text(spread.deviation)}"


PERCENT, PLAIN = Scale(percent=True), Scale(percent=False)


def whole_text(value: float) -> str:
    """`1,211`."""
    return f"{value:,.0f}"


def seconds_text(value: float) -> str:
    """Seconds with about two digits that matter: 0.42, 3.4, 134."""
    if value < 1:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 100 else whole_text(value)


def duration_text(seconds: float) -> str:
    """A duration for a sentence: 42 s, 12 min 5 s, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds_text(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def seeds_text(seeds: Iterable[int]) -> str:
    """`seed 0`, `seeds 0, 2`."""
    listed = list(map(str, seeds))
    return f"seed{'s' * (len(listed) > 1)} {', '.join(listed)}"


def date_text(iso: str | None) -> str:
    """`2026-11-22T12:00:00+00:00` as `2026-11-22 12:00 UTC`."""
    if not iso:
        return MISSING
    zone = " UTC" if iso.endswith(("+00:00", "Z")) else ""
    return iso[:16].replace("T", " ") + zone


def heading_text(metric: str) -> str:
    """A metric's name at the start of a heading."""
    if metric == "ece":
        return "Expected calibration error (ECE)"
    return metric[:1].upper() + metric[1:]


def count_text(number: int, noun: str) -> str:
    """`1 task`, `6 tasks`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
