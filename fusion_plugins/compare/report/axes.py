"""Axes of the charts: round ticks and positions in percent of the plot's size."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        low, high = self._inner(self.low), self._inner(self.high)
        share = (self._inner(value) - low) / ((high - low) or 1)
        return round(100 * min(max(share, 0.0), 1.0), 3)

    def _inner(self, value: float) -> float:
        return math.log10(max(value, self.low)) if self.log else value

    def labelled(self) -> list[tuple[float, str]]:
        """(position, text) of every tick."""
        return [(self.place(tick), tick_text(tick)) for tick in self.ticks]


def linear_axis(
    values: Sequence[float], bins: int = 5, zero: bool = False, snug: bool = False
) -> Axis:
    """An axis that ends on round numbers around the values, and 0 if asked.

    A `snug` axis ends on the outermost values instead.
    """
    values = [*values, 0.0] if zero else list(values)
    low, high = min(values), max(values)
    if low == high:
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    locator = MaxNLocator(nbins=bins, steps=[1, 2, 2.5, 5, 10])
    ticks = tuple(float(tick) for tick in locator.tick_values(low, high))
    if snug:
        return Axis(low, high, tuple(tick for tick in ticks if low <= tick <= high))
    return Axis(ticks[0], ticks[-1], ticks)


def log_axis(values: Sequence[float]) -> Axis:
    """A logarithmic axis over positive values: ticks at 1, 2 and 5, or powers of 10."""
    low = 10 ** math.floor(math.log10(min(values)))
    high = 10 ** math.ceil(math.log10(max(values)))
    high = high * 10 if high <= low else high
    decades = round(math.log10(high / low))
    steps = (1, 2, 5) if decades <= 2 else (1,)
    every = -(-decades // 6)  # more labels than this overlap on a phone
    ticks = [low * 10**d * step for d in range(0, decades + 1, every) for step in steps]
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
