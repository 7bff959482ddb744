"""Label-free selection of any method's options, as a FusionBench method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusion_bench import BaseAlgorithm, BaseModelPool
from fusion_bench.mixins import LightningFabricMixin, SimpleProfilerMixin
from lightning import Fabric
from torch import nn

from ..awd.base_method import build_base_method
from ..common import get_logger
from ..common.folders import results_folder
from ..common.options import WithOptions
from ..common.upstream import program_of
from ..pools.family import adapter_for, as_modelpool
from ..selection import response
from ..selection.line import SCALING
from ..selection.runner import Selection
from ..task_vectors import require_finite
from .options import SelectOptions

log = get_logger(__name__)


class SelectAlgorithm(
    WithOptions, LightningFabricMixin, SimpleProfilerMixin, BaseAlgorithm
):
    """Merge with the options that agree best with the experts on unlabelled samples.

    Args:
        **options: Those of :class:`SelectOptions`.

    Attributes:
        response: Every candidate of the last run, as saved in ``selection.json``.
        samples_seen: How many samples the last run looked at, once for each candidate.

    Raises:
        TypeError: An unknown option.
        ValueError: An option out of its range, or one that `base` does not have.
    """

    Options = SelectOptions
    options: SelectOptions
    response: dict[str, Any] | None = None
    samples_seen: int | None = None

    @staticmethod
    def chooses(config: Mapping[str, Any]) -> set[str]:
        """Options of its parts that a method with this config sets itself."""
        over = config.get("over") or (SCALING,)
        return {str(name).rpartition(".")[2] for name in over}

    def run(self, modelpool: BaseModelPool | Mapping[str, Any]) -> nn.Module:
        """Merge every candidate and return the best; the pool's models stay as they are.

        Args:
            modelpool: A FusionBench pool with datasets.

        Raises:
            ValueError, TypeError: The pool has no samples, or a candidate does not fit.
        """
        options = self.options
        adapter = adapter_for(as_modelpool(modelpool), options.tasks)
        grid, data = options.grid, options.selection_data
        # Where test sets are checked, with their own classes.
        folder = results_folder(self) if self.fabric.is_global_zero else None
        with self.profile("select"):
            selection = Selection(
                grid, data, self._build, self.fabric, options.drop_early
            )
            found = selection.run(adapter)
        with self.profile("merge"):
            merged = found.kept
            if merged is None:
                config = grid.method(response.chosen(found.search).settings)
                method = build_base_method(config, program_of(self), self.fabric)
                merged = found.pool.merge(method)
        best = response.described(response.chosen(found.search).settings)
        require_finite(merged, f"It is that of {best}: give other values to try.")
        self.response = response.publish(found.search, data.about, folder, "selection")
        candidates = self.response["candidates"]
        self.samples_seen = sum(sum(c["samples"].values()) for c in candidates)
        log.debug("%s", self.profiler.summary())
        return merged.cpu()

    def _build(self, config: Mapping[str, Any], fabric: Fabric) -> BaseAlgorithm:
        """A candidate; outside the program, it leaves no files."""
        return build_base_method(config, None, fabric)
