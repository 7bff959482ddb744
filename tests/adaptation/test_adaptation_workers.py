"""Several tensors at once: same numbers, whatever the number of threads."""

import threading

import pytest
import torch
from toy_engine import Normed, Plain, Tied, make_engine

from fusion_plugins.task_vectors.blocks import Workers


@pytest.fixture
def threads():
    """Sets torch's threads; they are as before afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_every_item_is_worked_on_once(threads, count):
    threads(count)
    workers, seen = Workers(), []
    for _ in range(3):
        seen.clear()
        workers.each(seen.append, range(23))
        assert sorted(seen) == list(range(23))
        assert torch.get_num_threads() == count
    workers.each(seen.append, [])
    assert len(seen) == 23


def test_workers_run_side_by_side_with_one_core_each_and_no_graph(threads):
    threads(2)
    together, found = threading.Barrier(2, timeout=120), []

    def work(item):
        together.wait()  # breaks unless two run at once
        found.append((torch.get_num_threads(), torch.is_grad_enabled()))

    Workers().each(work, range(2))
    assert found == [(1, False)] * 2
    started = []
    thread = threading.Thread(target=lambda: started.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert started == [2]  # threads that others start are as they were


@pytest.mark.parametrize("count", [1, 3])
def test_an_error_reaches_the_caller(threads, count):
    threads(count)

    def work(item):
        if item == 4:
            raise ValueError("the fifth")

    with pytest.raises(ValueError, match="the fifth"):
        Workers().each(work, range(9))
    assert torch.get_num_threads() == count


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_merge_and_gradient_do_not_depend_on_the_threads(threads, storage):
    weights = make_engine(storage=storage).weights
    torch.manual_seed(3)
    coefficients = torch.rand(len(weights.tasks), len(weights.keys))
    grads = {n: torch.randn_like(p) for n, p in weights.module.named_parameters()}
    found = []
    for count in (1, 2, 5):
        threads(count)
        for name, parameter in weights.module.named_parameters():
            parameter.grad = grads[name].clone()
        gradient = weights.coefficient_gradient()
        merged = weights.materialise(coefficients).state_dict().values()
        found.append([gradient, *(value.clone() for value in merged)])
    assert (found[0][0] != 0).all()
    for other in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(other, found[0], strict=True))


@pytest.mark.parametrize("kind", [Plain, Tied, Normed])
@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_an_expert_is_the_merge_with_a_single_one(kind, storage):
    engine = make_engine(kind, storage=storage)
    weights = engine.weights
    one = torch.zeros(len(weights.tasks), len(weights.keys))
    one[1] = 1
    weights.materialise(one)
    want = {n: v.clone() for n, v in weights.module.state_dict().items()}
    engine.materialise()
    for stack in weights.stacks:  # the others' task vectors are not read
        stack[[0, 2]] = float("nan")
    weights.materialise_expert(1)
    for name, value in weights.module.state_dict().items():
        assert torch.equal(value, want[name]), name
