"""What Model Tinting learns: coefficients and tints, from the experts' labels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..adaptation import (
    Coefficients,
    JointSchedule,
    MergedWeights,
    Predictor,
    SampleOrder,
    Schedule,
    SequentialSchedule,
    TeacherLabels,
    label_samples,
)
from ..learned.objective import Learner, Start
from ..merged import sites
from ..merged.model import TintedModel
from ..merged.sites import HEAD, Site
from ..merged.statistics import BatchNorm, batch_norms
from ..pools.adapter import PoolAdapter
from .options import TintingOptions
from .selection import PseudoLabelLoss, SelectionLog
from .tints import Places, Tints, make_tints


@dataclass
class TintedLearner(Learner):
    """A learner whose layers and labels can be looked at.

    Attributes:
        tints: The task-specific layers.
        teachers: Task name -> the labels of its samples.
        selection: Which samples were learned from.
    """

    tints: Tints | None = None
    teachers: dict[str, TeacherLabels] | None = None
    selection: SelectionLog | None = None


@dataclass(frozen=True)
class TintingObjective:
    """Coefficients together with one task-specific layer per task.

    Attributes:
        options: Of the method.
        rounds: Batches per task.
        profile: Times a part of the run.
    """

    options: TintingOptions
    rounds: int
    profile: Callable[[str], AbstractContextManager[None]]
    label: str = "Model Tinting"
    protocol: dict[str, Any] | None = None

    @property
    def clamps(self) -> bool:
        return self.options.clamp

    def schedule(self, tasks: int, order: SampleOrder) -> Schedule:
        if self.options.schedule_kind == "joint":
            return JointSchedule(tasks, self.rounds)
        return SequentialSchedule(tasks, self.rounds, order)

    def check(self, adapter: PoolAdapter, module: nn.Module) -> None:
        """Find the tinted places before anything slow."""
        sites.check_task_names(adapter.tasks)
        self._check_kind(adapter)
        places = self._places(adapter, module)
        shared = self.options.batch_norm is BatchNorm.RECALIBRATED
        if places.inner and shared and batch_norms(module):
            raise ValueError(
                f"batch_norm: the layers {list(places.inner)} differ between the tasks, so"
                " there is no one set of statistics. Use batch_norm=recalibrated_per_task."
            )
        if places.head in places.inner:
            raise ValueError(
                f"tint: '{places.head}' is the tasks' own head: write tint={HEAD}. It"
                " starts from each expert's head."
            )

    def _check_kind(self, adapter: PoolAdapter) -> None:
        pool, labels = type(adapter.modelpool).__name__, self.options.labels
        if HEAD in self.options.tint and not adapter.heads_are_layers:
            raise ValueError(
                f"tint: the models of a {pool} have no head per task. Tint a layer of the"
                " model instead: tint=<module path>."
            )
        if adapter.dense and labels != "outputs":
            raise ValueError(
                f"labels={labels}: the tasks of a {pool} predict something at every place"
                " of an image; learn from the experts' outputs with labels=outputs."
            )

    def _places(self, adapter: PoolAdapter, module: nn.Module) -> Places:
        wanted, own_head = self.options.tint, adapter.head_site(module)
        inner = [p for p in wanted if p not in (HEAD, *adapter.outer_layers)]
        return Places(
            head=Site(own_head or HEAD),
            heads_differ=HEAD in wanted or own_head is not None,
            heads_learn=HEAD in wanted,
            outer=tuple(Site.outer(p) for p in wanted if p in adapter.outer_layers),
            inner=tuple(map(Site, sites.find_sites(module, inner))),
        )

    def prepare(self, experts: Predictor, adapter: PoolAdapter) -> Start:
        """Label the samples with the experts, and copy the layers to be learned."""
        options, places = self.options, self._places(adapter, experts.weights.module)
        with self.profile("teacher"):
            teachers = label_samples(
                experts, options.labels == "soft", options.labels == "outputs"
            )
        tints = make_tints(places, experts, adapter, options.tint_init)

        def start(weights: MergedWeights, coefficients: Coefficients) -> TintedLearner:
            if places.inner:
                self._leave_out_inner(tints, weights, coefficients)
            return self._learner(experts, tints, teachers, coefficients)

        return start

    def _leave_out_inner(
        self, tints: Tints, weights: MergedWeights, coefficients: Coefficients
    ) -> None:
        """Merge tinted inner layers no more; the saved trunk has their start values."""
        weights.materialise(coefficients.effective().detach())
        if self.options.tint_init == "merged":
            tints.start_from_merged()
        inside = tuple(f"{site}." for site in tints.places.inner)
        weights.leave_out([key for key in weights.keys if key.startswith(inside)])

    def _learner(
        self,
        experts: Predictor,
        tints: Tints,
        teachers: dict[str, TeacherLabels],
        coefficients: Coefficients,
    ) -> TintedLearner:
        options = self.options
        tasks = [tints.with_tints(task, options.learn_tints) for task in experts.tasks]
        coefficients.raw.requires_grad_(options.learn_coefficients)
        learned = [p for task in tasks for p in task.parameters]
        groups: list[dict[str, Any]] = []
        if options.learn_coefficients:
            groups.append({"params": [coefficients.raw]})
        if learned:
            groups.append({"params": learned, "lr": options.tint_lr or options.lr})
        selection = SelectionLog(options.log_every)
        loss = PseudoLabelLoss(options, teachers, selection)
        return TintedLearner(
            tasks,
            loss,
            groups,
            lambda: _tinted_model(tints),
            [selection],
            tints=tints,
            teachers=teachers,
            selection=selection,
        )


def _tinted_model(tints: Tints) -> TintedModel:
    """The merged trunk with the learned layers, no task set."""
    tints.take_out()
    for layers in tints.layers.values():
        for layer in layers.values():
            layer.requires_grad_(True)
    return TintedModel(tints.module, tints.layers, tints.reference)
