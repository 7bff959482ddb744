"""The method replays the coefficients and heads of the authors' scripts."""

import literal
import pytest
import torch
from lightning import Fabric
from recordings import TOLERANCE, Recording, assert_recorded
from torch import Tensor

from fusion_plugins import TintingAlgorithm
from fusion_plugins.adaptation import (
    AdaptationTask,
    Coefficients,
    Engine,
    MergedWeights,
    Predictor,
    SampleOrder,
)
from fusion_plugins.merged.heads import ClassificationHead

SAMPLING = {"tinting": "none", "tinting_pp": "confidence_gap"}


class NoPool:
    """A pool without layers outside its model, and without heads inside."""

    outer_layers = ()

    def head_site(self, module) -> None: ...


class RecordedSchedule:
    """One batch of the task that the recorded run visited at this step."""

    def __init__(self, order: Tensor):
        self.order, self.steps = order.tolist(), len(order)

    def draws(self, step: int) -> list[tuple[int, list[int]]]:
        task = self.order[step]
        return [(task, [self.order[:step].count(task)])]


def unit_features(module, images: Tensor) -> Tensor:
    features = module(images)
    return features / features.norm(dim=-1, keepdim=True)


def recorded_task(recording: Recording, task: int) -> AdaptationTask:
    head = recording.head(task)
    return AdaptationTask(
        f"task{task}",
        recording.batches(task),
        ClassificationHead(head.weight, head.bias),
    )


def replay(recording: Recording, sampling: str) -> Engine:
    """Teacher, tints, loss and optimiser are the algorithm's own."""
    objective = TintingAlgorithm(sampling=sampling).make_objective()
    weights = MergedWeights(recording.encoder("base"), recording.task_vectors())
    tasks = [recorded_task(recording, t) for t in range(recording.tasks)]
    fabric = Fabric(accelerator="cpu", devices=1)
    experts = Predictor(weights, tasks, unit_features, fabric)
    coefficients = Coefficients(recording.tasks, len(weights.keys))
    learner = objective.prepare(experts, NoPool())(weights, coefficients)
    engine = Engine(
        Predictor(weights, learner.tasks, unit_features, fabric),
        coefficients,
        learner.loss,
        RecordedSchedule(recording.arrays["order"]),
        torch.optim.Adam(learner.groups, lr=1e-2),
        callbacks=learner.callbacks,
    )
    engine.run()
    return engine


@pytest.mark.parametrize("name", SAMPLING)
def test_learned_coefficients_and_heads_are_the_recorded_ones(name):
    recording = Recording.load(name)
    by_confidence = SAMPLING[name] == "confidence_gap"
    runs = [literal.tinting(run, by_confidence) for run in recording.literal()]
    engine = replay(recording, SAMPLING[name])
    got, want = engine.coefficients.raw.detach().t(), recording.arrays["final_lambdas"]
    assert_recorded(got, want, [lambdas for lambdas, _ in runs])
    for t in range(recording.tasks):
        start, final = recording.head(t), recording.head(t, "final_head")
        assert (final.weight - start.weight).abs().max() > TOLERANCE  # it was trained
        head = engine.tasks[t].head
        for part, name in enumerate(("weight", "bias")):
            literals = [heads[t][part] for _, heads in runs]
            assert_recorded(
                getattr(head, name).detach(), getattr(final, name), literals
            )


@pytest.mark.parametrize("name", SAMPLING)
def test_the_recorded_rounds_are_those_of_the_sequential_schedule(name):
    """Every round has each task once, one batch of it; ours in changing orders."""
    recording = Recording.load(name)
    assert recording.batches_per_visit == 1
    objective = TintingAlgorithm().make_objective()
    ours = objective.schedule(recording.tasks, SampleOrder(0, 32))
    assert ours.steps == 500 * recording.tasks
    visits = [ours.draws(step) for step in range(ours.steps)]
    assert all(d == [step // recording.tasks] for step, ((_, d),) in enumerate(visits))
    ours = torch.tensor([task for ((task, _),) in visits]).view(-1, recording.tasks)
    for rounds in (recording.arrays["order"].view(-1, recording.tasks), ours):
        assert (rounds.sort(dim=1).values == torch.arange(recording.tasks)).all()
    assert len(ours.unique(dim=0)) > 1
