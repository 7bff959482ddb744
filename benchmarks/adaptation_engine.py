"""The engine of a learned method on random towers, put together as its run() does."""

from __future__ import annotations

from adaptation_stand_ins import StandIn

from fusion_plugins.adaptation import (
    AdaptationTask,
    Callback,
    Coefficients,
    Engine,
    MergedWeights,
    Predictor,
    SampleOrder,
)
from fusion_plugins.learned.algorithm import LearnedMergeAlgorithm
from fusion_plugins.pools.adapter import PoolAdapter

INITIAL = 0.3


def make_predictor(given: StandIn) -> Predictor:
    """The experts with their heads."""
    job = given.job
    storage, offload = job["task_vector_dtype"], job.get("offload", False)
    weights = MergedWeights(
        given.tower, given.task_vectors(), given.device, storage, offload
    )
    tasks = [AdaptationTask(n, given.source(n), given.head(n)) for n in given.names]
    return Predictor(weights, tasks, given.features, given.fabric)


def make_engine(
    given: StandIn,
    algorithm: LearnedMergeAlgorithm,
    callbacks: list[Callback],
) -> Engine:
    """What trains; `callbacks` come after the method's own.

    Args:
        given: Towers, images, heads and the job.
        algorithm: Its options decide objective and schedule.
        callbacks: To watch the steps.
    """
    job, objective = given.job, algorithm.make_objective()
    # The class itself: what an adapter says of itself where nothing else is known.
    adapter = type("NoPool", (PoolAdapter,), {"tasks": given.names})
    predictor = make_predictor(given)
    weights = predictor.weights
    coefficients = Coefficients(
        job["tasks"], len(weights.keys), init=INITIAL, clamp=objective.clamps
    ).to(given.device)
    start = objective.prepare(predictor, adapter)
    learner = start(weights, coefficients)
    return Engine(
        Predictor(weights, learner.tasks, given.features, given.fabric),
        coefficients,
        learner.loss,
        objective.schedule(job["tasks"], SampleOrder(0, job["batch"])),
        learner.optimizer(learner.groups, lr=algorithm.options.lr),
        compile=job.get("compile", False),
        callbacks=[*learner.callbacks, *callbacks],
    )
