"""What AdaMerging and Model Tinting share as FusionBench methods: options and the run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from fusion_bench import BaseAlgorithm, BaseModelPool
from fusion_bench.mixins import (
    LightningFabricMixin,
    SimpleProfilerMixin,
    auto_register_config,
)
from omegaconf import OmegaConf
from torch import Tensor, nn

from ..adaptation import (
    Batch,
    Checkpoints,
    Coefficients,
    CollapseGuard,
    Engine,
    MergedWeights,
    Progress,
    SampleOrder,
)
from ..adaptation.schedule import Schedule
from ..awd.disentangle import Disentanglement
from ..common.logging import get_logger
from ..common.options import reject_unknown_options, require_patterns
from ..merged.recalibration import recalibrate
from ..merged.statistics import RunningStatistics
from ..pools import PoolAdapter, adapter_for, as_modelpool, load_task_vectors
from ..pools.task_heads import with_task_heads
from ..pools.tasks import DataOptions, build_tasks, prepare_tasks
from ..task_vectors.ties import ties_trim_
from . import options as checks
from .artifacts import SavedCoefficients, load_coefficients
from .results import results_card, save_results

log = get_logger(__name__)


@auto_register_config  # stores every option as an attribute and in the saved config
class LearnedMergeAlgorithm(LightningFabricMixin, SimpleProfilerMixin, BaseAlgorithm):
    """Merging coefficients learned at test time on unlabelled samples.

    Args:
        granularity: ``layer`` (one coefficient per task and tensor) or ``task``.
        init: Coefficients at step 0.
        lr: Of Adam, betas (0.9, 0.999), no weight decay.
        batch_size: Samples per batch, over all processes.
        trim: Share of each task vector kept by TIES trimming ("++"); None for none.
        disentangle: AWD settings (alpha, lr, iterations, granularity, scale_free, ...)
            to disentangle the task vectors first; None for none.
        data: Split to adapt on: ``test``, ``val`` or ``train``.
        fraction, max_samples: How much of each dataset takes part.
        tasks: What FusionBench does not know of own tasks; see the pool's adapter.
        keep: Patterns of tensors left as in the base.
        batch_norm: Which running statistics batch normalisation uses: ``average`` of the
            experts', ``merged`` by the coefficients, ``pretrained``, ``recalibrated`` or
            ``recalibrated_per_task``; see :mod:`fusion_plugins.merged.statistics`.
        batch_norm_samples: Samples per task to estimate them on.
        coefficients: File of saved coefficients: merge with them, learn nothing.
        seed: Of the samples' order; None means 0.
        task_vector_dtype: ``float32``, ``bfloat16`` or ``float16``.
        offload: Keep task vectors in pinned CPU memory.
        batch_tasks: ``auto``, True or False.
        compile: Use torch.compile.
        cache: Where preprocessed samples are kept: ``cpu``, ``device`` or ``none``.
        num_workers: Preprocessing processes; None for a sensible number.
        checkpoint_dir: Where interrupted runs are kept; None for no checkpoints.
        checkpoint_every, keep_checkpoints: Steps between them, and how many.
        resume: ``auto``, ``never``, or the path of a checkpoint.
        guard_every, guard_samples: Steps between checks against the experts'
            predictions, and samples per task; guard_every=0 turns them off.
        stop_on_collapse: Stop at an entropy collapse and return the best state.
        save_model: Write the merged model into the log folder.
        log_every: Steps between log entries.
    """

    label = "learned merge"

    def __init__(
        self,
        granularity: str = "layer",
        init: float = 0.3,
        lr: float = 1e-3,
        batch_size: int = 16,
        trim: float | None = None,
        disentangle: Mapping | None = None,
        data: str = "test",
        fraction: float = 1.0,
        max_samples: int | None = None,
        tasks: Mapping | None = None,
        keep: list[str] | None = None,
        batch_norm: str = "average",
        batch_norm_samples: int = 512,
        coefficients: str | None = None,
        seed: int | None = None,
        task_vector_dtype: str = "float32",
        offload: bool = False,
        batch_tasks: str | bool = "auto",
        compile: bool = False,
        cache: str = "cpu",
        num_workers: int | None = None,
        checkpoint_dir: str | None = None,
        checkpoint_every: int = 50,
        keep_checkpoints: int = 2,
        resume: str = "auto",
        guard_every: int = 50,
        guard_samples: int = 64,
        stop_on_collapse: bool = False,
        save_model: bool = True,
        log_every: int = 1,
        **kwargs,
    ):
        reject_unknown_options(self, kwargs)
        checks.check_options(self)
        self.result: SavedCoefficients | None = None
        self.history: list[dict] = []
        self.guard_history: list[dict] = []
        self.disentanglement: Disentanglement | None = None
        self.statistics: RunningStatistics | None = None
        super().__init__(**kwargs)

    # -- what a method decides ------------------------------------------------------

    @property
    @abstractmethod
    def clamps(self) -> bool:
        """Whether coefficients are clamped to [0, 1] in the forward pass."""

    @abstractmethod
    def schedule(self, tasks: int) -> Schedule:
        """Steps, and what each of them sees."""

    @abstractmethod
    def sample_loss(
        self, task: str, logits: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Value and weight per sample."""

    # -- the run --------------------------------------------------------------------

    def run(
        self, modelpool: BaseModelPool | Mapping, adapter: PoolAdapter | None = None
    ) -> nn.Module:
        """Learn and merge; the pool's models are left as they are.

        Args:
            modelpool: A FusionBench pool with datasets, or a dict of modules or folders
                together with an adapter that knows their data.
            adapter: How to get batches, features and heads; found by the pool's class.

        Returns:
            The merged model, on the CPU; a tinted one if the pool's experts have
            heads of their own.

        Raises:
            ValueError, TypeError: Pool, data, checkpoints or coefficients do not fit.
            AdaptationDiverged: A loss became NaN or Inf.
        """
        modelpool = as_modelpool(modelpool)
        saved = load_coefficients(self.coefficients) if self.coefficients else None
        if adapter is None and (saved is None or self.tasks):
            adapter = adapter_for(modelpool, checks.plain(self.tasks))
        if saved is None:
            adapter.check_datasets(self.data)
        checks.check_precision(self.fabric)
        with self.profile("load task vectors"):
            module, task_vectors = load_task_vectors(
                modelpool, require_patterns("keep", self.keep)
            )
            if saved is None:
                self.check_model(adapter, module)
            else:
                names = task_vectors.tasks, task_vectors.keys
                saved.require(*names, self._meaning(), self.coefficients)
            self.statistics = RunningStatistics(self.batch_norm, module, task_vectors)
            self.disentanglement = checks.disentangled(
                self.disentangle, task_vectors, self.statistics.apart
            )
            weights = self._weights(module, task_vectors)
            coefficients = self._coefficients(weights)
        if saved is not None:
            coefficients.load(saved.raw)
            self._transform(weights)
            weights.materialise(coefficients.effective().detach())
            self.statistics.write(weights.module)
        else:
            self._adapt(adapter, weights, coefficients)
        merged = with_task_heads(self.merged_model(weights).cpu(), modelpool)
        merged = self._recalibrated(merged, modelpool, adapter)
        merged.requires_grad_(True)
        self._finish(modelpool, weights, coefficients, merged)
        return merged

    def _recalibrated(self, merged: nn.Module, modelpool, adapter) -> nn.Module:
        if not self.statistics.recalibrates:
            return merged
        with self.profile("batch norm statistics"):
            if self.coefficients and adapter is not None:  # nothing was learned
                adapter.prepare(self.fabric.device)
            return recalibrate(
                merged,
                modelpool,
                per_task=self.statistics.per_task,
                samples=self.batch_norm_samples,
                data=self.data,
                seed=self.seed or 0,
                adapter=adapter,
                device=self.fabric.device,
            )

    def merged_model(self, weights: MergedWeights) -> nn.Module:
        """What the run returns and saves; the weights are merged already."""
        return weights.module

    def _weights(self, module: nn.Module, task_vectors) -> MergedWeights:
        return MergedWeights(
            module,
            task_vectors,
            self.fabric.device,
            self.task_vector_dtype,
            self.offload,
        )

    def _coefficients(self, weights: MergedWeights) -> Coefficients:
        mixing = None
        if self.disentanglement is not None and self.disentanglement.by_row is False:
            mixing = self.disentanglement.mixing(weights.keys)
        tasks, layers = len(weights.tasks), len(weights.keys)
        return Coefficients(
            tasks, layers, self.granularity, self.init, self.clamps, mixing
        ).to(weights.device)

    def _transform(self, weights: MergedWeights) -> None:
        """What changes the stored task vectors themselves."""
        if self.disentanglement is not None and self.disentanglement.by_row:
            for key, stack in zip(weights.keys, weights.stacks):
                self.disentanglement.subtract_(key, stack)
        if self.trim is not None:
            left_out = set(self.statistics.apart)
            layers = zip(weights.keys, weights.stacks)
            ties_trim_([s for key, s in layers if key not in left_out], self.trim)

    def _adapt(self, adapter, weights: MergedWeights, coefficients: Coefficients):
        self.adapter = adapter
        order = SampleOrder(self.seed or 0, self.batch_size)
        schedule = self.schedule(len(weights.tasks))
        with self.profile("prepare data"):
            tasks = build_tasks(adapter, order, self._data_options(), self.fabric)
            monitored = self.guard_samples if self.guard_every else 0
            visited = _visited(schedule, weights.tasks)
            prepare_tasks(tasks, visited, monitored, self.fabric.is_global_zero)
        engine = self._engine(adapter, weights, coefficients, tasks, schedule)
        guard = self._guard(engine)
        self.prepare_engine(engine)
        self._transform(weights)
        self._choose_statistics(engine, adapter)
        self.start_engine(engine)
        engine.optimizer = self.optimizer(engine)
        progress = Progress(self.label, self.log_every)
        engine.callbacks = self._callbacks(engine, progress, guard)
        with self.profile("adapt"):
            engine.run()
        self.statistics.repair(weights.module)
        self.history = progress.history
        self.guard_history = guard.history if guard else []

    def _choose_statistics(self, engine: Engine, adapter: PoolAdapter) -> None:
        """What batch normalisation uses from now on; the experts needed their own."""
        if self.statistics.apart:
            engine.weights.leave_out(self.statistics.apart)
            self.statistics.write(engine.weights.module)
        engine.forward = self.statistics.learning_forward(adapter.features)
        if self.statistics.recalibrates and self.statistics.per_task:
            engine.batch_tasks = False  # a batch's statistics are those of its task
        elif self.statistics.recalibrates:
            module = engine.materialise()
            self._recalibrated(module, adapter.modelpool, adapter)

    def _data_options(self) -> DataOptions:
        return DataOptions(
            self.data, self.fraction, self.max_samples, self.cache, self.num_workers
        )

    def _engine(self, adapter, weights, coefficients, tasks, schedule) -> Engine:
        return Engine(
            weights=weights,
            coefficients=coefficients,
            tasks=tasks,
            forward=adapter.features,
            loss=self.sample_loss,
            schedule=schedule,
            fabric=self.fabric,
            batch_tasks=self.batch_tasks,
            compile=self.compile,
        )

    def check_model(self, adapter: PoolAdapter, module: nn.Module) -> None:
        """A hook for methods, run as soon as the base model is known."""

    def extra_callbacks(self) -> list:
        """Callbacks of the method's own; those with state are in checkpoints."""
        return []

    def prepare_engine(self, engine: Engine) -> None:
        """A hook for methods, run once while the experts are still untouched."""

    def start_engine(self, engine: Engine) -> None:
        """A hook for methods, run once the task vectors are what is merged."""

    def optimizer(self, engine: Engine) -> torch.optim.Optimizer:
        """Adam over everything that is learned."""
        return torch.optim.Adam(engine.coefficients.parameters(), lr=self.lr)

    def _guard(self, engine: Engine) -> CollapseGuard | None:
        if not self.guard_every:
            return None
        if self.adapter.dense:
            log.info("There is no collapse guard: it compares predicted classes.")
            return None
        guard = CollapseGuard(
            self.guard_every, self.guard_samples, stop=self.stop_on_collapse
        )
        guard.note_experts(engine)  # from the untouched task vectors
        return guard

    def _callbacks(self, engine: Engine, progress: Progress, guard) -> list:
        stateful = {"history": progress} | ({"guard": guard} if guard else {})
        stateful |= {type(c).__name__: c for c in self.extra_callbacks()}
        callbacks = list(stateful.values())
        if self.checkpoint_dir is not None:
            identity = checks.identity(self, engine)
            checkpoints = Checkpoints(
                self.checkpoint_dir,
                identity,
                self.checkpoint_every,
                self.keep_checkpoints,
                self.resume,
                stateful,
            )
            # Restores before the others start, saves after they have looked.
            callbacks = [checkpoints.restorer(), *callbacks, checkpoints]
        return callbacks

    def _finish(self, modelpool, weights, coefficients, merged: nn.Module) -> None:
        self.result = SavedCoefficients(
            tuple(weights.tasks),
            tuple(weights.keys),
            coefficients.raw.detach().cpu(),
            coefficients.applied().detach().cpu(),
            self._meaning(),
        )
        if hasattr(merged, "card"):  # models that write their own folder
            merged.card = results_card(self, modelpool)
        if self.log_dir is not None and self.fabric.is_global_zero:
            with self.profile("save results"):
                save_results(self, modelpool, merged, Path(self.log_dir))
        self.print_profile_summary()

    def _meaning(self) -> dict:
        """The options without which saved coefficients mean something else."""
        disentangle = checks.plain(self.disentangle)
        return {"clamp": self.clamps, "trim": self.trim, "disentangle": disentangle}

    def card_notes(self) -> list[str]:
        """Sentences for the model card."""
        return [
            f"Coefficients were learned on unlabelled {self.data} samples with"
            f" {self.label}, seed {self.seed or 0}.",
            *self.statistics.card_notes(),
        ]

    def settings(self) -> dict:
        """Every option as plain values, for cards and checkpoints."""
        return OmegaConf.to_container(self.config, resolve=True)


def _visited(schedule: Schedule, names) -> dict[str, list[int]]:
    visited: dict[str, list[int]] = {name: [] for name in names}
    for step in range(schedule.steps):
        for task, draws in schedule.draws(step):
            visited[names[task]].extend(draws)
    return visited
