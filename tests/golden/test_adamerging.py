"""The engine replays the learned coefficients of the authors' scripts."""

import functools

import literal
import pytest
import torch
from lightning import Fabric
from recordings import TOLERANCE, Recording, assert_recorded

from fusion_plugins.adamerging.functional import prediction_entropy
from fusion_plugins.adaptation import (
    Coefficients,
    CollapseGuard,
    Engine,
    JointSchedule,
    Losses,
    MergedWeights,
    Predictor,
    expert_predictions,
)
from fusion_plugins.task_vectors.ties import ties_trim_

RECORDED = (
    "adamerging_layer_wise",
    "adamerging_layer_wise_pp",
    "adamerging_task_wise",
    "adamerging_task_wise_pp",
)


def entropy(task, logits, batch):
    values = prediction_entropy(logits)
    return Losses(values)


def replay(recording: Recording, name: str, batch_tasks) -> torch.Tensor:
    weights = MergedWeights(recording.encoder("base"), recording.task_vectors())
    assert weights.keys == recording.parameter_names
    if name.endswith("_pp"):
        ties_trim_(weights.stacks, 0.2)
    granularity = "layer" if "layer" in name else "task"
    coefficients = Coefficients(recording.tasks, len(weights.keys), granularity)
    predictor = Predictor(
        weights,
        recording.adaptation_tasks(),
        lambda module, images: module(images),
        Fabric(accelerator="cpu", devices=1),
    )
    # Looking must not change the result.
    guard = CollapseGuard(expert_predictions(predictor, 64), every=10)
    Engine(
        predictor,
        coefficients,
        entropy,
        JointSchedule(recording.tasks, recording.steps, recording.batches_per_visit),
        torch.optim.Adam(coefficients.parameters(), lr=1e-3),
        batch_tasks=batch_tasks,
        callbacks=[guard],
    ).run()
    raw = coefficients.raw.detach()
    return raw.t() if raw.dim() == 2 else raw[None]


@functools.cache
def literal_runs(name: str) -> list[torch.Tensor]:
    options = {"task_wise": "task" in name, "trimmed": name.endswith("_pp")}
    return [literal.adamerging(r, **options) for r in Recording.load(name).literal()]


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("batch_tasks", [True, False, "auto"])
def test_learned_coefficients_are_the_recorded_ones(name, batch_tasks):
    recording = Recording.load(name)
    want = recording.arrays["final_lambdas"]
    assert (want - literal.INIT).abs().max() > TOLERANCE  # they did move
    got = replay(recording, name, batch_tasks)
    assert_recorded(got, want, literal_runs(name))
