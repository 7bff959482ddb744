"""Adaptive Weight Disentanglement as a FusionBench method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from fusion_bench import BaseAlgorithm, BaseModelPool
from fusion_bench.mixins import (
    LightningFabricMixin,
    SimpleProfilerMixin,
    auto_register_config,
)
from torch import nn

from ..common.logging import get_logger
from ..common.options import (
    reject_unknown_options,
    require_choice,
    require_integer,
    require_number,
    require_patterns,
)
from ..merged.recalibration import recalibrate
from ..merged.statistics import CHOICES, RunningStatistics
from ..pools import adapter_for, as_modelpool, load_task_vectors, with_shared_heads
from ..pools.adapter import SPLITS
from ..pools.task_heads import with_task_heads
from ..task_vectors import merge_into
from ..task_vectors.gram import GRANULARITIES
from . import report
from .base_method import build_base_method, disentangled_pool, linear_weights
from .disentangle import Disentanglement, disentangle
from .functional import Descent

log = get_logger(__name__)


@auto_register_config  # stores every option as an attribute and in the saved config
class AWDAlgorithm(LightningFabricMixin, SimpleProfilerMixin, BaseAlgorithm):
    """Remove what all task vectors share, then merge what is left with another method.

    Args:
        base: The method that merges the disentangled experts: a FusionBench method
            config, an algorithm object, or None for Task Arithmetic with 0.3.
        alpha: Weight of |delta| in the objective. Suits task vectors of norm 2 to 3.
        lr: Step size of the descent (beta in the paper).
        iterations: Steps of the descent.
        momentum, weight_decay: As in SGD; the paper uses neither.
        tolerance: Stop early once the loss changes less than this, relatively.
        granularity: ``model``, ``tensor`` or ``row``.
        include, exclude: Shell-style patterns of the tensors that are disentangled.
        keep: Patterns of tensors left as in the base, such as task heads.
        scale_free: Make alpha independent of the task vectors' norms; not in the paper.
        batch_norm: Which running statistics batch normalisation uses: ``average`` of the
            experts', ``merged`` like weights, ``pretrained``, ``recalibrated`` or
            ``recalibrated_per_task``; see :mod:`fusion_plugins.merged.statistics`. The last two
            need samples.
        batch_norm_samples: Samples per task to estimate them on, unlabelled.
        data: Split they are from: ``test``, ``val`` or ``train``.

    Raises:
        TypeError: An unknown option.
        ValueError: An option out of its range.

    Source: arXiv:2411.18729. Deviations: none with the defaults; the solver works on
    inner products and gives the same iterates (see awd/functional.py).
    """

    def __init__(
        self,
        base: BaseAlgorithm | Mapping | None = None,
        alpha: float = 0.1,
        lr: float = 0.01,
        iterations: int = 300,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        tolerance: float = 0.0,
        granularity: str = "model",
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        keep: list[str] | None = None,
        scale_free: bool = False,
        batch_norm: str = "average",
        batch_norm_samples: int = 512,
        data: str = "test",
        **kwargs,
    ):
        reject_unknown_options(self, kwargs)
        for name in ("alpha", "weight_decay", "tolerance"):
            require_number(name, getattr(self, name))
        require_number("lr", lr, open_low=True)
        require_number("momentum", momentum, high=1)
        require_integer("iterations", iterations)
        require_choice("granularity", granularity, GRANULARITIES)
        require_choice("scale_free", scale_free, (True, False))
        require_choice("batch_norm", batch_norm, CHOICES)
        require_integer("batch_norm_samples", batch_norm_samples, low=2)
        require_choice("data", data, SPLITS)
        for name in ("include", "exclude", "keep"):
            require_patterns(name, getattr(self, name))
        self.disentanglement: Disentanglement | None = None
        super().__init__(**kwargs)

    def run(self, modelpool: BaseModelPool | Mapping) -> nn.Module:
        """Merge a pool; its models are left as they are.

        Args:
            modelpool: A FusionBench pool, a dict of modules, or a dict of model folders.

        Returns:
            The merged model; whatever the base method returns if it is not linear. If
            the pool's experts have heads of their own, a tinted model that holds them.

        Raises:
            ValueError, TypeError: The pool or its checkpoints do not fit.
        """
        modelpool = as_modelpool(modelpool)
        base_method = build_base_method(self)
        with self.profile("load base"):
            module, task_vectors = load_task_vectors(
                modelpool, require_patterns("keep", self.keep)
            )
            statistics = RunningStatistics(self.batch_norm, module, task_vectors)
            adapter = self._adapter(modelpool, statistics)
        with self.profile("disentangle"), torch.no_grad():
            self.disentanglement = self._disentangle(task_vectors, statistics.apart)
        self._report()
        weights = linear_weights(base_method, module, len(task_vectors.tasks))
        with self.profile("merge"):
            if weights is not None:
                folded = {
                    k: self.disentanglement.fold(k, weights) for k in task_vectors.keys
                }
                merged = merge_into(module, task_vectors, folded, self._shows_progress)
            else:
                pool = with_shared_heads(modelpool)
                view = disentangled_pool(pool, task_vectors, self.disentanglement)
                merged = base_method.run(view)
            statistics.write(merged)
            merged = with_task_heads(merged, modelpool)
        if adapter is not None:
            merged = self._recalibrate(merged, adapter, statistics.per_task)
        self.print_profile_summary()
        return merged

    def _adapter(self, modelpool, statistics: RunningStatistics):
        """What gives samples to estimate statistics on, if the pool's models have any."""
        if not statistics.recalibrates:
            return None
        adapter = adapter_for(modelpool)
        adapter.check_datasets(self.data)
        return adapter

    def _recalibrate(self, merged: nn.Module, adapter, per_task: bool) -> nn.Module:
        with self.profile("batch norm statistics"):
            adapter.prepare(self.fabric.device)
            return recalibrate(
                merged,
                adapter.modelpool,
                per_task=per_task,
                samples=self.batch_norm_samples,
                data=self.data,
                adapter=adapter,
                device=self.fabric.device,
            )

    @property
    def _shows_progress(self) -> bool:
        return self.fabric.is_global_zero

    def _disentangle(self, task_vectors, apart: Sequence[str]) -> Disentanglement:
        settings = Descent(
            self.alpha,
            self.lr,
            self.iterations,
            self.momentum,
            self.weight_decay,
            self.tolerance,
        )
        return disentangle(
            task_vectors,
            settings,
            granularity=self.granularity,
            include=require_patterns("include", self.include),
            exclude=(*require_patterns("exclude", self.exclude), *apart),
            scale_free=self.scale_free,
            progress=self._shows_progress,
        )

    def _report(self) -> None:
        result = report.summary(self.disentanglement)
        before, after = result["mean_absolute_cosine"]
        log.info(
            "AWD: mean |cos| %.4f -> %.4f, |delta| %.4g, task vector norms %.3g to %.3g",
            before,
            after,
            result["delta_norm"],
            min(result["task_vector_norms"]),
            max(result["task_vector_norms"]),
        )
        for step, values in enumerate(self.disentanglement.solution.losses.tolist()):
            names = ("awd/loss", "awd/orthogonality", "awd/redundancy")
            self.fabric.log_dict(dict(zip(names, values)), step=step)
        if self.log_dir is not None and self.fabric.is_global_zero:
            for path in report.save(self.disentanglement, self.log_dir):
                log.info("AWD report: %s", path)
