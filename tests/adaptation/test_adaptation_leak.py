"""Nothing of a run stays in memory after it."""

import gc

import pytest
import torch
from toy_engine import make_engine, make_predictor

from fusion_plugins.adaptation.batching import plan_groups


def live_tensors() -> int:
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.fixture
def no_collector():
    """Only what reference counts free is freed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_planning_keeps_no_tensor_in_a_circle(no_collector):
    predictor = make_predictor()
    predictor.weights.materialise(torch.full((3, len(predictor.weights.keys)), 0.3))
    predictor.weights.train_moved_layers()
    draws = [(task, [0]) for task in range(3)]
    plan_groups(predictor, draws, "auto")
    before = live_tensors()
    for _ in range(3):
        assert next(iter(plan_groups(predictor, draws, "auto")(draws))) == draws
    assert live_tensors() == before


def test_runs_in_a_row_leave_the_same_number_of_tensors():
    counts = []
    for _ in range(5):
        make_engine(steps=2, batch_tasks="auto").run()
        gc.collect()
        counts.append(live_tensors())
    assert counts[1:] == counts[1:2] * 4
