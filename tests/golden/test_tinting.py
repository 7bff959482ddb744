"""The method replays the coefficients and heads of the authors' scripts."""

from collections.abc import Iterable

import literal
import numpy as np
import pytest
import torch
from encoder import TOLERANCE, RecordedBatches, Recording, assert_recorded
from lightning import Fabric
from torch import Tensor

from fusion_plugins import TintingAlgorithm
from fusion_plugins.adaptation import (
    AdaptationTask,
    Coefficients,
    Engine,
    MergedWeights,
)
from fusion_plugins.merged.heads import ClassificationHead

SAMPLING = {"tinting": "none", "tinting_pp": "confidence_gap"}


class LabelledBatches(RecordedBatches):
    """Recorded batches whose visited samples the teacher can ask for."""

    @property
    def dataset(self) -> Tensor:
        return self.images

    @property
    def visited(self) -> np.ndarray:
        return self.batches.unique().numpy()

    def inputs(self, samples: Iterable[int]) -> Tensor:
        return self.images[samples]


class RecordedSchedule:
    """The batches of the task that the recorded run visited at this step."""

    def __init__(self, order: Tensor, batches: int):
        self.order, self.steps, self.batches = order.tolist(), len(order), batches

    def draws(self, step: int) -> list[tuple[int, list[int]]]:
        task = self.order[step]
        first = self.order[:step].count(task) * self.batches
        return [(task, list(range(first, first + self.batches)))]


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
    algorithm = TintingAlgorithm(sampling=sampling)
    algorithm._inner = []
    algorithm._own_heads = None
    weights = MergedWeights(recording.encoder("base"), recording.task_vectors())
    engine = Engine(
        weights=weights,
        coefficients=Coefficients(recording.tasks, len(weights.keys)),
        tasks=[recorded_task(recording, t) for t in range(recording.tasks)],
        forward=unit_features,
        loss=algorithm.sample_loss,
        schedule=RecordedSchedule(
            recording.arrays["order"], recording.batches_per_visit
        ),
        fabric=Fabric(accelerator="cpu", devices=1),
    )
    algorithm.adapter = type("NoPool", (), {"outer_layers": ()})()
    algorithm.prepare_engine(engine)
    engine.optimizer = algorithm.optimizer(engine)
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
    """Every round has each task once, one batch each, in changing orders."""
    recording = Recording.load(name)
    tasks, each = recording.tasks, torch.arange(recording.tasks)
    recorded = recording.arrays["order"].view(-1, tasks)
    assert (recorded.sort(dim=1).values == each).all()
    assert recording.batches_per_visit == 1
    algorithm = TintingAlgorithm()
    schedule = algorithm.schedule(tasks)
    assert (schedule.steps, algorithm.batch_size) == (500 * tasks, 32)
    draws = [schedule.draws(step) for step in range(schedule.steps)]
    rounds = torch.tensor([[task for task, _ in d] for d in draws]).view(-1, tasks)
    assert (rounds.sort(dim=1).values == each).all()
    assert len(rounds.unique(dim=0)) > 1
    assert all(batches == [step // tasks] for step, ((_, batches),) in enumerate(draws))
