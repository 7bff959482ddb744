"""Model Tinting as a FusionBench method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from fusion_bench.mixins import auto_register_config
from torch import Tensor, nn

from ..adaptation import (
    AdaptationTask,
    Batch,
    Engine,
    JointSchedule,
    MergedWeights,
    SampleOrder,
    SequentialSchedule,
)
from ..common.options import require_choice, require_integer, require_number
from ..learned.algorithm import LearnedMergeAlgorithm
from ..merged import sites
from ..merged.heads import ClassificationHead
from ..merged.model import TintedModel
from ..merged.statistics import batch_norms
from . import functional
from .selection import SelectionLog
from .teacher import TeacherLabels, label_samples

INITS = ("pretrained", "expert", "merged")
LABELS = ("hard", "soft", "outputs")
SAMPLINGS = ("none", "confidence_gap", "top_p")
SCHEDULES = ("sequential", "joint")


@auto_register_config
class TintingAlgorithm(LearnedMergeAlgorithm):
    """Learn coefficients together with one small task-specific layer per task.

    Args:
        tint: ``head`` (the classification head), a module path or pattern of layers in
            the model, an outer layer such as ``visual_projection``, or a list of these.
        tint_init: What an inner layer starts from: ``pretrained``, ``expert`` or
            ``merged``. A head starts from the task's frozen head in any case.
        rounds: Every task has one batch per round.
        schedule_kind: ``sequential``: a step after each task, tasks in a fresh order
            each round; ``joint``: one step per round.
        labels: Of the teacher: ``hard``, ``soft``, or ``outputs``: no labels, but the mean
            absolute difference from its outputs; dense tasks need this one.
        sampling: ``none``, ``confidence_gap`` or ``top_p``.
        top_p: Share of each batch kept by ``top_p``.
        clamp: Clamp coefficients to [0, 1] in the forward pass.
        tint_lr: Learning rate of the tints; None: that of the coefficients.
        learn_coefficients, learn_tints: False freezes them, for ablations.
        **kwargs: See :class:`~fusion_plugins.learned.algorithm.LearnedMergeAlgorithm`; here lr is
            0.01 and batch_size 32 unless given.

    Raises:
        TypeError: An unknown option.
        ValueError: An option out of its range, or nothing left to learn.

    Source: arXiv:2412.19098. Deviation: the teacher labels every sample once before the
    training instead of once per step; labels and losses are the same.
    """

    label = "Model Tinting"

    def __init__(
        self,
        tint: str | list[str] = "head",
        tint_init: str = "pretrained",
        rounds: int = 500,
        schedule_kind: str = "sequential",
        labels: str = "hard",
        sampling: str = "none",
        top_p: float = 0.5,
        clamp: bool = True,
        tint_lr: float | None = None,
        learn_coefficients: bool = True,
        learn_tints: bool = True,
        lr: float = 1e-2,
        batch_size: int = 32,
        **kwargs,
    ):
        _require_tint(tint)
        require_choice("tint_init", tint_init, INITS)
        require_integer("rounds", rounds)
        require_choice("schedule_kind", schedule_kind, SCHEDULES)
        require_choice("labels", labels, LABELS)
        require_choice("sampling", sampling, SAMPLINGS)
        require_number("top_p", top_p, high=1, open_low=True)
        for name in ("clamp", "learn_coefficients", "learn_tints"):
            require_choice(name, getattr(self, name), (True, False))
        if tint_lr is not None:
            require_number("tint_lr", tint_lr, open_low=True)
        if not learn_coefficients and not learn_tints:
            raise ValueError(
                "learn_coefficients and learn_tints are both false: nothing is learned."
            )
        if labels == "outputs" and sampling != "none":
            raise ValueError(
                f"sampling={sampling} compares predicted classes; with labels=outputs use"
                " sampling=none."
            )
        if kwargs.get("coefficients") is not None:
            raise ValueError(
                "coefficients cannot restore a tinted model, whose tints were learned too:"
                " use TintedModel.from_pretrained(folder)."
            )
        super().__init__(lr=lr, batch_size=batch_size, **kwargs)

    @property
    def clamps(self) -> bool:
        return self.clamp

    @property
    def patterns(self) -> list[str]:
        return [self.tint] if isinstance(self.tint, str) else list(self.tint)

    def schedule(self, tasks: int):
        rounds = 1 if self.is_debug_mode else self.rounds
        if self.schedule_kind == "joint":
            return JointSchedule(tasks, rounds)
        return SequentialSchedule(
            tasks, rounds, SampleOrder(self.seed or 0, self.batch_size)
        )

    def check_model(self, adapter, module: nn.Module) -> None:
        """Find the tinted places before anything slow."""
        sites.check_task_names(adapter.tasks)
        self._own_heads = adapter.head_site(module)
        if sites.HEAD in self.patterns and not adapter.heads_are_layers:
            raise ValueError(
                f"tint: the models of a {type(adapter.modelpool).__name__} have no head"
                " per task. Tint a layer of the model instead: tint=<module path>."
            )
        if adapter.dense and self.labels != "outputs":
            raise ValueError(
                f"labels={self.labels}: the tasks of a {type(adapter.modelpool).__name__}"
                " predict something at every place of an image; learn from the experts'"
                " outputs with labels=outputs."
            )
        inner = [
            p for p in self.patterns if p not in (sites.HEAD, *adapter.outer_layers)
        ]
        self._inner = sites.find_sites(module, inner) if inner else []
        if self._inner and self.batch_norm == "recalibrated" and batch_norms(module):
            raise ValueError(
                f"batch_norm: the layers {self._inner} differ between the tasks, so there"
                " is no one set of statistics. Use batch_norm=recalibrated_per_task."
            )
        if self._own_heads in self._inner:
            raise ValueError(
                f"tint: '{self._own_heads}' is the tasks' own head: write tint="
                f"{sites.HEAD}. It starts from each expert's head."
            )

    def prepare_engine(self, engine: Engine) -> None:
        """Label the samples with the experts, then put the tints in place."""
        with self.profile("teacher"):
            self._teachers = label_samples(
                engine, self.labels == "soft", self.labels == "outputs"
            )
        self._selection = SelectionLog(self.log_every)
        self._tints: dict[str, dict[str, nn.Module]] = {}  # site -> task -> layer
        self._plain: dict[str, nn.Module] = {}  # inner site -> the layer it replaces
        self._reference: dict[str, Tensor] = {}  # task -> its frozen head, if outside
        if sites.HEAD in self.patterns or self._own_heads:
            self._tint_heads(engine)
        for name in self.patterns:
            if name in self.adapter.outer_layers:
                self._tint_outer(engine, name)
        if self._inner:
            self._tint_inner(engine)
        engine.tasks = [self._with_tints(task) for task in engine.tasks]

    def _tint_heads(self, engine: Engine) -> None:
        if self._own_heads:
            module = engine.weights.module
            self._plain[self._own_heads] = module.get_submodule(self._own_heads)
            self._tints[self._own_heads] = {
                task.name: sites.trainable_copy(task.head) for task in engine.tasks
            }
            return
        self._tints[sites.HEAD] = {}
        for task in engine.tasks:
            head = task.head
            if not isinstance(head, ClassificationHead):
                self._tints[sites.HEAD][task.name] = sites.trainable_copy(head)
                continue
            self._reference[task.name] = head.weight.detach().clone()
            zeros = head.weight.new_zeros(len(head.weight))
            bias = zeros if head.bias is None else head.bias
            self._tints[sites.HEAD][task.name] = ClassificationHead(head.weight, bias)

    def _tint_outer(self, engine: Engine, name: str) -> None:
        layer = getattr(self.adapter.outer_module, name)
        self._tints[f"outer:{name}"] = {
            task.name: sites.trainable_copy(layer) for task in engine.tasks
        }

    def _tint_inner(self, engine: Engine) -> None:
        """Copy the layers as they are in the pretrained model or in each expert."""
        module = self._module = engine.weights.module
        for site in self._inner:
            self._plain[site] = module.get_submodule(site)
            self._tints[site] = {}
        for index, task in enumerate(engine.tasks):
            engine.weights.materialise(self._start(engine, index))
            for site in self._inner:
                layer = sites.trainable_copy(module.get_submodule(site))
                self._tints[site][task.name] = layer
        engine.materialise()

    def _start(self, engine: Engine, index: int) -> Tensor:
        coefficients = torch.zeros_like(engine.coefficients.effective())
        coefficients[index] = float(self.tint_init == "expert")
        return coefficients

    def start_engine(self, engine: Engine) -> None:
        """Leave tinted inner layers out of the merge, at its start values."""
        if not self._inner:
            return
        engine.materialise()  # also what the saved trunk holds in their places
        for site in self._inner if self.tint_init == "merged" else ():
            for tint in self._tints[site].values():
                tint.load_state_dict(self._plain[site].state_dict())
        inside = tuple(f"{site}." for site in self._inner)
        left_out = [key for key in engine.weights.keys if key.startswith(inside)]
        engine.weights.leave_out(left_out)

    def _with_tints(self, task: AdaptationTask) -> AdaptationTask:
        head_place = self._own_heads or sites.HEAD
        learned = []
        for site, tints in self._tints.items():
            # Heads of the experts' own are here in any case, to be part of the result.
            chosen = site != self._own_heads or sites.HEAD in self.patterns
            layer = tints[task.name].requires_grad_(self.learn_tints and chosen)
            learned += [p for p in layer.parameters() if p.requires_grad]
        placed = [site for site in self._tints if site != head_place]
        return replace(
            task,
            head=self._tints.get(head_place, {}).get(task.name, task.head),
            parameters=tuple(learned),
            activate=(lambda: self._place(task.name)) if placed else None,
        )

    def _place(self, task: str) -> None:
        for site, tints in self._tints.items():
            if site in (sites.HEAD, self._own_heads):
                continue
            if site.startswith("outer:"):
                owner, path = self.adapter.outer_module, site.removeprefix("outer:")
            else:
                owner, path = self._module, site
            sites.replace(owner, path, tints[task])

    def optimizer(self, engine: Engine) -> torch.optim.Optimizer:
        """One Adam over coefficients and tints."""
        groups = []
        engine.coefficients.raw.requires_grad_(self.learn_coefficients)
        if self.learn_coefficients:
            groups.append({"params": [engine.coefficients.raw]})
        tints = [p for task in engine.tasks for p in task.parameters]
        if tints:
            groups.append({"params": tints, "lr": self.tint_lr or self.lr})
        return torch.optim.Adam(groups, lr=self.lr)

    def extra_callbacks(self) -> Sequence:
        return [self._selection]

    def sample_loss(
        self, task: str, logits: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        teacher: TeacherLabels = self._teachers[task]
        samples = batch.samples.to(logits.device)
        if teacher.outputs is not None:
            values = functional.output_loss(logits, teacher.outputs[samples])
            return values, torch.ones_like(values)
        labels, confidence = teacher.labels[samples], teacher.confidence[samples]
        target = labels if self.labels == "hard" else teacher.probabilities[samples]
        values = functional.pseudo_label_loss(logits, target)
        selected = self._selected(logits, labels, confidence)
        self._selection.note(task, logits, labels, confidence)
        return values, selected.to(values)

    def _selected(self, logits: Tensor, labels: Tensor, confidence: Tensor) -> Tensor:
        if self.sampling == "confidence_gap":
            return functional.confidence_gap_selection(logits, labels, confidence)
        if self.sampling == "top_p":
            return functional.top_p_selection(confidence, self.top_p)
        return torch.ones_like(labels, dtype=torch.bool)

    def merged_model(self, weights: MergedWeights) -> TintedModel:
        """The merged trunk with the learned layers, no task set."""
        for site, layer in self._plain.items():
            sites.replace(weights.module, site, layer)
        for layer in (la for tints in self._tints.values() for la in tints.values()):
            layer.requires_grad_(True)
        return TintedModel(weights.module, self._tints, self._reference)


def _require_tint(tint: object) -> None:
    places = [tint] if isinstance(tint, str) else tint
    named = isinstance(places, Sequence) and all(isinstance(p, str) for p in places)
    if not named or not places:
        raise ValueError(
            f"tint is {tint!r}, expected '{sites.HEAD}', a module path or pattern, or a list"
            " of these."
        )
