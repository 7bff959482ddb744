"""Adaptive Weight Disentanglement as a FusionBench method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
from fusion_bench import BaseAlgorithm, BaseModelPool
from fusion_bench.mixins import LightningFabricMixin, SimpleProfilerMixin
from torch import Tensor, nn

from ..common import get_logger
from ..common.folders import results_folder
from ..common.options import WithOptions, choice, patterns, plain
from ..common.upstream import program_of
from ..pools.family import FinishOptions, adapter_for, family_of
from ..pools.loading import as_modelpool, load_task_vectors
from ..pools.replaced import with_shared_heads
from ..task_vectors import TaskVectors, merge_into, require_finite
from . import report
from .base_method import (
    base_config,
    build_base_method,
    disentangled_pool,
    linear_weights,
)
from .disentangle import Disentanglement
from .options import DisentangleOptions, base_method

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class AWDOptions(DisentangleOptions, FinishOptions):
    """Options of :class:`AWDAlgorithm`: those of its two bases, and these.

    Args:
        base: The method that merges the disentangled experts: a FusionBench method
            config, an algorithm object, or None for Task Arithmetic with 0.3.
        scaling: ``auto``: the base method's scaling factor is the one whose merge agrees
            best with the experts on unlabelled samples; None: as the base method says.
        keep: Patterns of tensors left as in the base, such as task heads.
    """

    base: Any = base_method()
    scaling: str | None = choice(None, (None, "auto"))
    keep: tuple[str, ...] = patterns()


class AWDAlgorithm(
    WithOptions, LightningFabricMixin, SimpleProfilerMixin, BaseAlgorithm
):
    """Remove what all task vectors share, then merge what is left with another method.

    Args:
        **options: Those of :class:`AWDOptions`.

    Attributes:
        disentanglement: What the last run found.
        card: The last merged model's card, Markdown with metadata.

    Raises:
        TypeError: An unknown option.
        ValueError: An option out of its range.

    Source: arXiv:2411.18729. Deviations: none with the defaults; the solver works on
    inner products and gives the same iterates (see awd/functional.py).
    """

    Options = AWDOptions
    options: AWDOptions
    disentanglement: Disentanglement | None = None
    #: With a base whose merges move along a line as it is scaled, these do too.
    keeps_lines: ClassVar[bool] = True
    card: str | None = None

    @staticmethod
    def chooses(config: Mapping[str, Any]) -> set[str]:
        """Options of its parts that a method with this config sets itself."""
        return {"scaling_factor"} if config.get("scaling") == "auto" else set()

    def run(self, modelpool: BaseModelPool | Mapping[str, Any]) -> nn.Module:
        """Merge a pool; its models are left as they are.

        Args:
            modelpool: A FusionBench pool, a dict of modules, or a dict of model folders.

        Returns:
            The merged model. If the pool's experts have heads of their own, a tinted
            model that holds them.

        Raises:
            ValueError, TypeError: The pool or its checkpoints do not fit, or the base
                method makes several models.
        """
        modelpool, options = as_modelpool(modelpool), self.options
        asked = options.scaling is not None or options.tasks
        adapter = self._adapter(modelpool) if asked else None
        # Where test sets are checked, with their own classes.
        folder = results_folder(self) if self.fabric.is_global_zero else None
        base = options.base
        if options.scaling is not None:
            base = self._base_with_best_scaling(adapter, folder)
        method = build_base_method(base, program_of(self), self.fabric)
        with self.profile("load base"):
            module, task_vectors = load_task_vectors(modelpool, options.keep)
            finish = family_of(modelpool).finish(
                modelpool, module, task_vectors, options
            )
        with self.profile("disentangle"), torch.no_grad():
            found = options.find(task_vectors, finish.apart, self.fabric.is_global_zero)
        self.disentanglement = found
        weights = linear_weights(method, module, len(task_vectors.tasks))
        with self.profile("merge"):
            if weights is not None:
                merged = self._merge_linearly(module, task_vectors, found, weights)
            else:
                pool = with_shared_heads(modelpool, module)
                pool = disentangled_pool(pool, task_vectors, found)
                merged = _one_model(method.run(pool), method)
        with self.profile("finish"):
            merged = finish(merged, self.fabric.device)
            advice = "Use a smaller scaling, or check the experts."
            require_finite(merged, advice, options.keep)
        report.publish(found, self.fabric, folder)
        log.debug("%s", self.profiler.summary())
        self.card = finish.card("AWD", plain(self.config), merged)
        return merged

    def _adapter(self, modelpool: BaseModelPool) -> Any:
        if not family_of(modelpool).has_data:
            option = "tasks" if self.options.scaling is None else "scaling=auto"
            raise TypeError(
                f"{option} needs samples, and nothing knows those of a"
                f" {type(modelpool).__name__}. Set the base method's scaling factor, or"
                " register an adapter for this class."
            )
        return adapter_for(modelpool, self.options.tasks)

    def _base_with_best_scaling(
        self, adapter: Any, folder: Path | None
    ) -> dict[str, Any]:
        config = plain(self.config) | {"scaling": None}
        # On use: merging without it needs no data, and no test-time engine.
        room = import_module("...selection.scaling", family_of.__module__)
        with self.profile("select scaling"):
            return room.select_scaling(
                config | {"base": base_config(self.options.base)},
                adapter,
                lambda settings, fabric: build_base_method(settings, None, fabric),
                self.fabric,
                self.options.data,
                folder,
            )["base"]

    def _merge_linearly(
        self,
        module: nn.Module,
        task_vectors: TaskVectors,
        found: Disentanglement,
        weights: Tensor,
    ) -> nn.Module:
        folded = {key: found.fold(key, weights) for key in task_vectors.keys}
        return merge_into(module, task_vectors, folded, self.fabric.is_global_zero)


def _one_model(merged: object, method: BaseAlgorithm) -> nn.Module:
    if isinstance(merged, nn.Module):
        return merged
    raise TypeError(
        f"base: {type(method).__name__} returned a {type(merged).__name__}, not one model."
        " Choose a base method that makes one."
    )
