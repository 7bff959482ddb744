"""The method replays the coefficients and heads of the authors' scripts."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from encoder import RecordedBatches, Recording
from lightning import Fabric
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


class LabelledBatches(RecordedBatches):
    """Recorded batches whose visited samples the teacher can ask for."""

    @property
    def count(self) -> int:
        return len(self.images)

    @property
    def visited(self) -> np.ndarray:
        return self.batches.unique().numpy()

    def inputs(self, samples: Iterable[int]) -> Tensor:
        return self.images[samples]


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
    recorded = recording.batches(task)
    source = LabelledBatches(recorded.images, recorded.batches)
    return AdaptationTask(
        f"task{task}", source, ClassificationHead(head.weight, head.bias)
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
    )
    engine.run()
    return engine


@pytest.mark.parametrize("name", SAMPLING)
def test_learned_coefficients_and_heads_are_the_recorded_ones(name):
    recording = Recording.load(name)
    want = recording.arrays["final_lambdas"].t()
    assert want.min() < 0 or want.max() > 1  # the clamp's zero gradient takes part
    engine = replay(recording, SAMPLING[name])
    got = engine.coefficients.raw.detach()
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)
    for task in range(recording.tasks):
        start, final = recording.head(task), recording.head(task, "final_head")
        assert (final.weight - start.weight).abs().max() > 0.05
        head = engine.tasks[task].head
        torch.testing.assert_close(head.weight.data, final.weight, rtol=0, atol=2e-5)
        torch.testing.assert_close(head.bias.data, final.bias, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", SAMPLING)
def test_the_recorded_rounds_are_those_of_the_sequential_schedule(name):
    """75 steps: every round has each task once, one batch of 32, in changing orders."""
    recording = Recording.load(name)
    rounds = recording.arrays["order"].view(-1, recording.tasks)
    assert rounds.shape == (25, 3)
    assert (rounds.sort(dim=1).values == torch.arange(3)).all()
    assert len(rounds.unique(dim=0)) > 3
    assert recording.arrays["schedule"].shape[1:] == (1, 32)
    defaults = TintingAlgorithm()
    schedule = defaults.objective().schedule(3, SampleOrder(0, 32))
    assert (schedule.steps, defaults.options.batch_size) == (1500, 32)


def test_sampling_is_what_tells_the_two_recordings_apart():
    """Without its sampling the second file is not replayed: the test can fail."""
    recording = Recording.load("tinting_pp")
    got = replay(recording, "none").coefficients.raw.detach()
    want = recording.arrays["final_lambdas"].t()
    assert (got - want).abs().max() > 1e-3
