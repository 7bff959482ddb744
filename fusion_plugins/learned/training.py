"""From loaded experts to a learned merge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from fusion_bench import BaseModelPool
from lightning import Fabric
from torch import nn

from ..adaptation import (
    Callback,
    Checkpoints,
    Coefficients,
    CollapseGuard,
    Engine,
    MergedWeights,
    Predictor,
    Progress,
    SampleOrder,
    expert_predictions,
    visited_draws,
)
from ..common import get_logger
from ..pools.adapter import PoolAdapter
from ..pools.family import Finish
from ..pools.tasks import build_tasks
from ..selection.search import Search
from .batch_norm import learning_forward
from .identity import run_identity
from .objective import Learner, Objective
from .options import AUTO, LearnedOptions
from .start import start_chooser
from .transform import Transform

log = get_logger(__name__)


@dataclass(frozen=True)
class Experts:
    """A pool as a learned merge holds it.

    Attributes:
        modelpool: The pool.
        weights: The module and the task vectors.
        coefficients: Of the task vectors.
        transform: What is done to the task vectors first.
        finish: What makes the merge a whole model.
    """

    modelpool: BaseModelPool
    weights: MergedWeights
    coefficients: Coefficients
    transform: Transform
    finish: Finish


@dataclass(frozen=True)
class Trained:
    """What a training leaves.

    Attributes:
        model: The merged model, without the parts that `finish` adds.
        history, guard_history: Entries per logged step, and per check of the guard.
        samples: Task name -> samples seen, each as often as it was drawn.
        search: For the coefficients' start; None if it was given.
        checkpoints: Still there, until the results are saved; None without any.
    """

    model: nn.Module
    history: list[dict[str, Any]]
    guard_history: list[dict[str, Any]]
    samples: dict[str, int]
    checkpoints: Checkpoints | None
    search: Search | None = None


@dataclass(frozen=True)
class Trainer:
    """Learns the coefficients of a pool's experts.

    Attributes:
        objective: Of the method.
        options: Of the run.
        settings: All options and the protocol as plain values; name the checkpoints.
        fabric: Device, precision, processes, loggers.
        profile: Times a part of the run.
        hold: Enters a context until the end of the run.
    """

    objective: Objective
    options: LearnedOptions
    settings: Mapping[str, Any]
    fabric: Fabric
    profile: Callable[[str], AbstractContextManager[None]]
    hold: Callable[[Checkpoints], Checkpoints]

    def train(self, experts: Experts, adapter: PoolAdapter) -> Trained:
        """Run the whole schedule."""
        options, weights = self.options, experts.weights
        order = SampleOrder(options.seed, options.batch_size)
        schedule = self.objective.schedule(len(weights.tasks), order)
        with self.profile("prepare data"):
            draws = visited_draws(schedule, weights.tasks, schedule.steps)
            data = options.data_options
            tasks = build_tasks(adapter, order, draws, data, self.fabric)
        predictor = Predictor(weights, tasks, adapter.features, self.fabric)
        guard = self._guard(predictor, adapter)
        choose = start_chooser(predictor, order) if options.init == AUTO else None
        start = self.objective.prepare(predictor, adapter)
        # From here on the weights hold what is merged, and the experts no more.
        experts.transform.apply_(weights)
        search = choose and choose(experts.coefficients, experts.finish.statistics)
        batch_tasks = self._settle_statistics(experts)
        learner = start(weights, experts.coefficients)
        progress = Progress(self.objective.label, options.log_every)
        checkpoints = self._checkpoints(
            lambda: run_identity(weights, tasks, adapter), learner, progress, guard
        )
        forward = learning_forward(experts.finish.statistics, adapter.features)
        engine = Engine(
            Predictor(weights, learner.tasks, forward, self.fabric),
            experts.coefficients,
            learner.loss,
            schedule,
            learner.optimizer(learner.groups, lr=options.lr),
            batch_tasks,
            options.compile,
            _in_order(progress, guard, learner, checkpoints),
        )
        log.info("Memory: %s", engine.memory_plan())
        with self.profile("adapt"):
            engine.run()
        experts.finish.statistics.repair(weights.module)
        history = guard.history if guard else []
        seen = visited_draws(schedule, weights.tasks, engine.step)
        samples = {name: len(seen[name]) * options.batch_size for name in seen}
        found = progress.history, history, samples, checkpoints, search
        return Trained(learner.result(), *found)

    def _guard(
        self, predictor: Predictor, adapter: PoolAdapter
    ) -> CollapseGuard | None:
        options = self.options
        if not options.guard_every:
            return None
        if adapter.dense:
            log.info("There is no collapse guard: it compares predicted classes.")
            return None
        return CollapseGuard(
            expert_predictions(predictor, options.guard_samples),
            options.guard_every,
            options.guard_samples,
            stop=options.stop_on_collapse,
            patience=options.guard_patience,
        )

    def _settle_statistics(self, experts: Experts) -> str | bool:
        """Write batch norm's statistics; the experts needed their own until now.

        Returns:
            Which tasks may share a forward.
        """
        weights, finish = experts.weights, experts.finish
        if finish.apart:
            weights.leave_out(finish.apart)
            finish.statistics.write(weights.module)
        if not finish.statistics.recalibrates:
            return self.options.batch_tasks
        if finish.options.batch_norm.per_task:
            return False  # a batch's statistics are those of its task
        weights.materialise(experts.coefficients.effective().detach())
        finish.complete(weights.module, self.fabric.device)
        return self.options.batch_tasks

    def _checkpoints(
        self,
        identity: Callable[[], Mapping[str, Any]],
        learner: Learner,
        progress: Progress,
        guard: CollapseGuard | None,
    ) -> Checkpoints | None:
        options = self.options
        if options.checkpoint_dir is None:
            return None
        stateful: dict[str, Callback] = {"history": progress}
        stateful |= {"guard": guard} if guard else {}
        stateful |= {
            type(callback).__name__: callback for callback in learner.callbacks
        }
        return self.hold(
            Checkpoints(
                options.checkpoint_dir,
                self.fabric.broadcast({**self.settings, **identity()}),
                options.checkpoint_every,
                options.keep_checkpoints,
                options.resume,
                stateful,
                self.fabric.is_global_zero,
            )
        )


def _in_order(
    progress: Progress,
    guard: CollapseGuard | None,
    learner: Learner,
    checkpoints: Checkpoints | None,
) -> list[Callback]:
    """Checkpoints restore before the others start, and save after they have looked."""
    watching = [progress, *([guard] if guard else []), *learner.callbacks]
    if checkpoints is None:
        return watching
    return [checkpoints.restorer(), *watching, checkpoints]
