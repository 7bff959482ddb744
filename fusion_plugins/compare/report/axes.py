"""Axes of the charts: round ticks and positions in percent of the plot's size."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic range of values with its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, value: float) -> float:
        """Position of a value, 0 at `low` and 100 at `high`; ends are not passed."""
        low, high, at = self.low, self.high, max(value, self.low)
        if self.log:
            low, high, at = map(math.log10, (low, high, at))
        share = (at - low) / ((high - low) or 1)
        return round(100 * min(share, 1.0), 3)

    def labelled(self) -> list[tuple[float, str]]:
        """(position, text) of every tick."""
        return [(self.place(tick), tick_text(tick)) for tick in self.ticks]


def linear_axis(
    values: Iterable[float], bins: int = 5, zero: bool = False, snug: bool = False
) -> Axis:
    """An axis that ends on round numbers around the values, and 0 if asked.

    A `snug` axis ends on the outermost values instead.
    """
    values = [*values, 0.0] if zero else list(values)
    low, high = min(values), max(values)
    if low == high:
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    locator = MaxNLocator(nbins=bins, steps=[1, 2, 2.5, 5, 10])
    ticks = tuple(map(float, locator.tick_values(low, high)))
    if snug:
        return Axis(low, high, tuple(tick for tick in ticks if low <= tick <= high))
    return Axis(ticks[0], ticks[-1], ticks)


def log_axis(values: Iterable[float]) -> Axis:
    """A logarithmic axis over positive values: ticks at 1, 2 and 5, or powers of 10."""
    powers = [math.log10(value) for value in values]
    first, last = math.floor(min(powers)), math.ceil(max(powers))
    last = max(last, first + 1)
    steps = (1, 2, 5) if last - first <= 2 else (1,)
    every = -(-(last - first) // 6)  # more labels than this overlap on a phone
    ticks = [10.0**d * step for d in range(first, last + 1, every) for step in steps]
    low, high = 10.0**first, 10.0**last
    return Axis(low, high, tuple(t for t in ticks if t <= high * 1.001), log=True)


def tick_text(value: float) -> str:
    """A tick as short as it goes: 0.5, 20, 2,000, 10⁶."""
    rounded = float(f"{value:.3g}")
    if rounded >= 1e5 and f"{rounded:e}".startswith("1.000000e"):
        power = str(round(math.log10(rounded)))
        return "10" + power.translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    if abs(rounded) >= 1000:
        return f"{rounded:,.0f}"
    return f"{rounded:g}".replace("-", "−")
