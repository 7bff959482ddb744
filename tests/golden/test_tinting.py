"""The method replays the coefficients and heads of the authors' scripts."""

import pytest
import torch
from lightning import Fabric
from recordings import Recording
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
    objective = TintingAlgorithm(sampling=sampling).objective()
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
    want = recording.arrays["final_lambdas"].t()
    engine = replay(recording, SAMPLING[name])
    got = engine.coefficients.raw.detach()
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)
    for task in range(recording.tasks):
        start, final = recording.head(task), recording.head(task, "final_head")
        assert (final.weight - start.weight).abs().max() > 1e-3  # it did learn
        head = engine.tasks[task].head
        torch.testing.assert_close(head.weight.data, final.weight, rtol=0, atol=2e-5)
        torch.testing.assert_close(head.bias.data, final.bias, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", SAMPLING)
def test_the_recorded_rounds_are_those_of_the_sequential_schedule(name):
    """Every round has each task once, one batch of it, in changing orders."""
    recording = Recording.load(name)
    tasks, steps = recording.tasks, recording.steps
    objective = TintingAlgorithm(rounds=steps).objective()
    ours = objective.schedule(tasks, SampleOrder(0, 32))
    ours = torch.tensor([ours.draws(step)[0][0] for step in range(ours.steps)])
    for order in (recording.arrays["order"], ours):
        rounds = order.view(steps, tasks)
        assert (rounds.sort(dim=1).values == torch.arange(tasks)).all()
        assert len(rounds.unique(dim=0)) > 1
    assert recording.arrays["schedule"].shape[1] == 1


def test_sampling_is_what_tells_the_two_recordings_apart():
    """Without its sampling the second file is not replayed: the test can fail."""
    recording = Recording.load("tinting_pp")
    (selection,) = replay(recording, "confidence_gap").callbacks
    if min(selection.kept.values()) == 1:
        pytest.skip("the recorded run kept every sample")
    got = replay(recording, "none").coefficients.raw.detach()
    want = recording.arrays["final_lambdas"].t()
    assert (got - want).abs().max() > 2e-5
