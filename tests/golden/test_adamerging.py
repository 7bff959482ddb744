"""The engine replays the learned coefficients of the authors' scripts."""

import functools

import literal
import pytest
import torch
from encoder import TOLERANCE, Recording, assert_recorded
from lightning import Fabric

from fusion_plugins.adamerging.functional import prediction_entropy
from fusion_plugins.adaptation import (
    Coefficients,
    CollapseGuard,
    Engine,
    JointSchedule,
    MergedWeights,
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
    return values, torch.ones_like(values)


def replay(recording: Recording, name: str, batch_tasks) -> torch.Tensor:
    weights = MergedWeights(recording.encoder("base"), recording.task_vectors())
    assert weights.keys == recording.parameter_names
    steps = len(recording.arrays["order"]) // recording.tasks
    if name.endswith("_pp"):
        ties_trim_(weights.stacks, 0.2)
    granularity = "layer" if "layer" in name else "task"
    coefficients = Coefficients(recording.tasks, len(weights.keys), granularity)
    Engine(
        weights=weights,
        coefficients=coefficients,
        tasks=recording.adaptation_tasks(),
        forward=lambda module, images: module(images),
        loss=entropy,
        schedule=JointSchedule(recording.tasks, steps, recording.batches_per_visit),
        fabric=Fabric(accelerator="cpu", devices=1),
        optimizer=torch.optim.Adam(coefficients.parameters(), lr=1e-3),
        batch_tasks=batch_tasks,
        callbacks=[CollapseGuard(every=10)],  # looking must not change the result
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
