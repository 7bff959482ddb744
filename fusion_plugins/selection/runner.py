"""Runs a search over a pool: merges every candidate, keeps the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

from fusion_bench import BaseAlgorithm
from lightning import Fabric
from torch import nn
from tqdm.auto import tqdm

from ..common.charts import described
from ..common.upstream import loggers_of
from ..pools.adapter import PoolAdapter
from .candidates import Grid
from .line import Line
from .pool import SelectionData, SelectionPool, require_classes, require_labels
from .scoring import Logits
from .search import SCANNED, Search, scan

# What FusionBench's methods raise for values that they do not know.
_REFUSALS = (ArithmeticError, AssertionError, LookupError, RuntimeError, ValueError)


@dataclass(frozen=True)
class Selection:
    """Which candidates are tried, and on what.

    Attributes:
        grid: The candidates.
        data: What they are scored on.
        build: A method's config and the fabric to run it with -> the method.
        fabric: Device and precision.
        drop: Whether candidates that are clearly behind are dropped early.
    """

    grid: Grid
    data: SelectionData
    build: Callable[[Mapping[str, Any], Fabric], BaseAlgorithm]
    fabric: Fabric
    drop: bool = True

    def run(self, adapter: PoolAdapter) -> Selected:
        """Look at every candidate.

        Args:
            adapter: Of the pool.

        Raises:
            ValueError, TypeError: The pool has no samples, its tasks have no classes, or
                a candidate does not fit.
        """
        quiet = copy(self.fabric)
        loggers_of.put(quiet, [])  # candidates leave no files

        def build(settings: Mapping[str, Any]) -> BaseAlgorithm:
            return self.build(self.grid.method(settings), quiet)

        listed = list(self.grid.settings())
        for settings in listed:  # what is wrong with one is said now
            build(settings)
        adapter.check_datasets(self.data.split)
        require_classes(adapter)
        require_labels(adapter, self.data)
        pool = SelectionPool(adapter, self.data, self.fabric)
        candidates = Candidates(self.grid, pool, build, Search(pool.scorer, self.drop))
        count, silent = len(listed) or SCANNED, not self.fabric.is_global_zero
        with tqdm(desc="Select", total=count, disable=silent) as bar:
            candidates.consider_all(bar)
        return Selected(candidates.search, pool, candidates.kept)


@dataclass(frozen=True)
class Selected:
    """What a selection found.

    Attributes:
        search: All candidates and the best.
        pool: What merged them.
        kept: The best model; None where merging again costs next to nothing.
    """

    search: Search
    pool: SelectionPool
    kept: nn.Module | None


class Candidates:
    """Merges and scores candidates one after the other.

    Args:
        grid: What they are.
        pool: What merges them.
        build: Settings -> the method with them.
        search: What scores them.

    Attributes:
        kept: The best model so far, unless it can be had again from its line.
    """

    def __init__(
        self,
        grid: Grid,
        pool: SelectionPool,
        build: Callable[[Mapping[str, Any]], BaseAlgorithm],
        search: Search,
    ):
        self._grid, self._pool, self._build = grid, pool, build
        self.search = search
        self.kept: nn.Module | None = None
        self._scaling = grid.scaling if Line.passes_through(pool.base) else None
        self._line: tuple[Mapping[str, Any], Line] | None = None

    def consider_all(self, bar: tqdm) -> None:
        """Look at all of the grid, or scan the scaling."""
        if not self._grid.values:
            name = self._grid.options[0].name
            scan(lambda value: self._consider({name: value}, bar))
        for settings in self._grid.settings():
            self._consider(settings, bar)

    def _consider(self, settings: dict[str, Any], bar: tqdm) -> bool:
        merged: list[nn.Module] = []

        def merge() -> Logits:
            try:
                merged.append(self._merge(settings))
            except _REFUSALS as error:
                what = f"The candidate {described(settings)} cannot be merged"
                raise ValueError(
                    f"{what} ({type(error).__name__}: {error})."
                ) from error
            return self._pool.logits(merged[0])

        best = self.search.consider(settings, merge)
        if best and self._scaling is None:
            self.kept = merged[0]
        bar.update()
        return best

    def _merge(self, settings: dict[str, Any]) -> nn.Module:
        if self._scaling is None:
            return self._pool.merge(self._build(settings))
        name = self._scaling.name
        others = {**settings, name: 1.0}
        if self._line is None or self._line[0] != others:
            whole = self._pool.merge(self._build(others))
            whole.to(self._pool.fabric.device)
            self._line = others, Line(self._pool.base, whole)
        return self._line[1].at(settings[name])
