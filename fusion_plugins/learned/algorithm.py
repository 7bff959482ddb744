"""What AdaMerging and Model Tinting share as FusionBench methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fusion_bench import BaseAlgorithm, BaseModelPool
from fusion_bench.mixins import LightningFabricMixin, SimpleProfilerMixin
from torch import nn

from ..adaptation import Coefficients, MergedWeights, check_resume
from ..awd.disentangle import Disentanglement
from ..common import get_logger
from ..common.folders import require_folder, results_folder
from ..common.options import WithOptions, plain
from ..merged.cards import pool_card
from ..merged.model import TintedModel
from ..pools.adapter import PoolAdapter
from ..pools.family import adapter_for, family_of
from ..pools.loading import as_modelpool, load_task_vectors
from ..selection.pool import require_classes
from ..task_vectors import require_finite
from .artifacts import SavedCoefficients, load_coefficients
from .objective import Objective
from .options import AUTO, INCIDENTAL, LearnedOptions, check_precision
from .results import MODEL, save_model, save_results
from .start import start_notes
from .training import Experts, Trained, Trainer
from .transform import Transform

log = get_logger(__name__)


class LearnedMergeAlgorithm(
    WithOptions, LightningFabricMixin, SimpleProfilerMixin, BaseAlgorithm, ABC
):
    """Merging coefficients learned at test time on unlabelled samples.

    Args:
        **options: Those of :class:`~fusion_plugins.learned.options.LearnedOptions` and
            of the method.

    Attributes:
        result: The learned coefficients, after a run.
        history, guard_history: What was measured while learning.
        disentanglement: What AWD removed, if it was asked for.
        card, saved_model: The merged model's card (Markdown), and where it was saved.
        samples_seen: How many samples were learned from, repeats too.
    """

    Options = LearnedOptions
    options: LearnedOptions
    result: SavedCoefficients | None = None
    history: list[dict[str, Any]] = []
    guard_history: list[dict[str, Any]] = []
    disentanglement: Disentanglement | None = None
    card: str | None = None
    saved_model: Path | None = None
    samples_seen: int | None = None

    @abstractmethod
    def make_objective(self) -> Objective:
        """What is learned, and how."""

    def run(
        self,
        modelpool: BaseModelPool | Mapping[str, Any],
        adapter: PoolAdapter | None = None,
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
        modelpool, objective = as_modelpool(modelpool), self.make_objective()
        saved = self._saved_coefficients()
        if adapter is None and (saved is None or self.options.tasks):
            adapter = adapter_for(modelpool, self.options.tasks)
        folder = self._folder()  # where test sets are checked with their own classes
        settings = self._settings(objective)
        if saved is None and adapter is not None:
            adapter.check_datasets(self.options.data)
            check_resume(self.options.resume, settings)
        experts = self._load(modelpool, adapter, objective, saved)
        with ExitStack() as held:
            trainer = Trainer(
                objective,
                self.options,
                settings,
                self.fabric,
                self.profile,
                held.enter_context,
            )
            if saved is not None:
                trained = self._merge(experts, saved, adapter)
            elif adapter is not None:
                trained = trainer.train(experts, adapter)
            merged = self._complete(trained, experts)
            self._keep(trained, experts, objective, merged, folder)
            if trained.checkpoints is not None:
                trained.checkpoints.forget()
        log.debug("%s", self.profiler.summary())
        return merged

    def _folder(self) -> Path | None:
        """Where results go; whatever cannot be written into is found before any work."""
        if not self.fabric.is_global_zero:
            return None
        options = self.options
        if options.checkpoint_dir is not None and options.coefficients is None:
            require_folder("checkpoint_dir", options.checkpoint_dir)
        return results_folder(self)

    def _saved_coefficients(self) -> SavedCoefficients | None:
        path = self.options.coefficients
        return None if path is None else load_coefficients(path)

    def _settings(self, objective: Objective) -> dict[str, Any]:
        """What is known from the start of all that decides the result."""
        given = {k: v for k, v in self.settings().items() if k not in INCIDENTAL}
        precision = check_precision(self.fabric)
        protocol, chosen = objective.protocol or {}, self.options.from_preset
        given |= {name: chosen[name] for name in chosen if name not in protocol}
        return given | {"protocol": objective.protocol, "precision": precision}

    def settings(self) -> dict[str, Any]:
        """Every option as plain values, for cards and checkpoints."""
        return plain(self.config)

    def _load(
        self,
        modelpool: BaseModelPool,
        adapter: PoolAdapter | None,
        objective: Objective,
        saved: SavedCoefficients | None,
    ) -> Experts:
        options, device = self.options, self.fabric.device
        with self.profile("load task vectors"):
            module, task_vectors = load_task_vectors(modelpool, options.keep)
            if saved is None and adapter is not None:
                objective.check(adapter, module)
                if options.init == AUTO:
                    require_classes(adapter)
            elif saved is not None:
                names = task_vectors.tasks, task_vectors.keys
                meaning = self._meaning(objective)
                saved.require(*names, meaning, options.coefficients)
            family = family_of(modelpool) if adapter is None else type(adapter)
            given = modelpool, module, task_vectors, options, adapter
            finish = family.finish(*given, options.seed)
            transform = Transform.read(options, task_vectors, finish.apart)
            storage = options.task_vector_dtype, options.offload
            weights = MergedWeights(module, task_vectors, device, *storage)
            coefficients = Coefficients(
                len(weights.tasks),
                len(weights.keys),
                options.granularity,
                0.0 if options.init == AUTO else float(options.init),
                objective.clamps,
                transform.mixing(weights.keys),
            ).to(device)
        self.disentanglement = transform.disentanglement
        return Experts(modelpool, weights, coefficients, transform, finish)

    def _merge(
        self, experts: Experts, saved: SavedCoefficients, adapter: PoolAdapter | None
    ) -> Trained:
        """Merge with saved coefficients."""
        experts.coefficients.load(saved.raw)
        experts.transform.apply_(experts.weights)
        effective = experts.coefficients.effective().detach()
        model = experts.weights.materialise(effective)
        experts.finish.statistics.write(model)
        if adapter is not None and experts.finish.statistics.recalibrates:
            adapter.prepare(self.fabric.device)
        return Trained(model, [], [], {}, None)

    def _complete(self, trained: Trained, experts: Experts) -> nn.Module:
        with self.profile("finish"):
            merged = experts.finish.complete(trained.model.cpu(), self.fabric.device)
        advice = "Lower lr or init, or check the experts."
        require_finite(merged, advice, self.options.keep)
        return merged.requires_grad_(True)

    def _keep(
        self,
        trained: Trained,
        experts: Experts,
        objective: Objective,
        merged: nn.Module,
        folder: Path | None,
    ) -> None:
        """Remember and save what the run has found."""
        self.history, self.guard_history = trained.history, trained.guard_history
        self.samples_seen = sum(trained.samples.values())
        self.result = SavedCoefficients(
            experts.weights.tasks,
            experts.weights.keys,
            experts.coefficients.raw.detach().cpu(),
            experts.coefficients.applied().detach().cpu(),
            self._meaning(objective),
        )
        notes = [
            f"Coefficients were learned on unlabelled {self.options.data} samples with"
            f" {objective.label}, seed {self.options.seed}.",
            *experts.weights.storage_notes(experts.coefficients.effective().detach()),
            *start_notes(trained.search),
            *experts.finish.statistics.card_notes(),
        ]
        pool = experts.modelpool
        self.card = card = pool_card(objective.label, self.settings(), pool, notes)
        if isinstance(merged, TintedModel):  # it writes its own folder
            merged.card = card
        if folder is not None:
            with self.profile("save results"):
                save_results(
                    folder,
                    self.result,
                    trained.history,
                    trained.guard_history,
                    trained.samples,
                    self.disentanglement,
                    trained.search,
                )
                if self.options.save_model:
                    self.saved_model = folder / MODEL
                    folder = save_model(pool, merged, folder)
                (folder / "README.md").write_text(card)

    def _meaning(self, objective: Objective) -> dict[str, Any]:
        """The options without which saved coefficients mean something else."""
        return {
            "clamp": objective.clamps,
            "trim": self.options.trim,
            "disentangle": self.options.disentangle,
        }
