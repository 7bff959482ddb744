"""The coefficients' gradients are those of autograd through an explicit merge."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical
from torch.func import functional_call
from toy_engine import (
    TASKS,
    Normed,
    Plain,
    Tied,
    information,
    learned,
    make_engine,
    models,
)

from fusion_plugins.adaptation import Coefficients, Engine

KINDS = [Plain, Tied, Normed]


def first_gradient(engine: Engine) -> Tensor:
    """d loss / d raw of the first step, as the optimiser gets it."""
    gradients = []
    engine.coefficients.raw.register_hook(lambda g: gradients.append(g.clone()))
    engine.train_step()
    (gradient,) = gradients
    return gradient


def explicit_gradient(engine: Engine, kind, coefficients: Tensor) -> Tensor:
    """Autograd from the loss through base + sum_t coefficients[t, l] tau_t[l]."""
    base, experts = models(kind, torch.float64)
    before = base.state_dict()
    parameters = dict(base.named_parameters())
    merged = {}
    for column, key in enumerate(engine.weights.keys):
        merged[key] = before[key].clone()
        for row, expert in enumerate(experts.values()):
            change = expert.state_dict()[key] - before[key]
            merged[key] = merged[key] + coefficients[row, column] * change
        if key not in parameters:  # running statistics are merged, not learned through
            merged[key] = merged[key].detach()
    loss = 0.0
    for index, draws in engine.schedule.draws(0):
        task = engine.tasks[index]
        for draw in draws:
            inputs = task.source.batch([draw]).inputs
            features = functional_call(base.eval(), merged, (inputs,))
            predicted = Categorical(logits=task.head(features))
            loss = loss + predicted.entropy().mean()
            if engine.loss is information:
                loss = loss - Categorical(predicted.probs.mean(0)).entropy()
    return torch.autograd.grad(loss, coefficients, retain_graph=True)[0]


def spread_raw(engine: Engine) -> Tensor:
    """Put the raw coefficients below, on, inside and above the clamp's interval."""
    raw = engine.coefficients.raw
    values = torch.tensor([-0.4, 0.0, 0.2, 0.55, 1.0, 1.3, 0.8], dtype=torch.float64)
    with torch.no_grad():
        raw.copy_(values.repeat(raw.numel())[: raw.numel()].view(raw.shape))
    return raw.detach().clone().requires_grad_()


def assert_relatively_close(got: Tensor, want: Tensor, bound: float = 1e-10) -> None:
    assert want.abs().max() > 1e-4
    assert (got - want).norm() <= bound * want.norm()


def full(values: Tensor, engine: Engine) -> Tensor:
    layers = len(engine.weights.keys)
    return values if values.dim() == 2 else values[:, None].expand(TASKS, layers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("granularity", ["layer", "task"])
@pytest.mark.parametrize("clamp", [True, False])
def test_gradients_equal_autograd(kind, granularity, clamp):
    engine = make_engine(
        kind, dtype=torch.float64, granularity=granularity, clamp=clamp
    )
    raw = spread_raw(engine)
    effective = full(raw.detach().clamp(0, 1) if clamp else raw, engine)
    effective = effective.detach().requires_grad_()
    through_merge = explicit_gradient(engine, kind, effective)
    want = through_merge if granularity == "layer" else through_merge.sum(dim=1)
    if clamp:  # zero outside [0, 1], whole on its boundary
        outside = (raw < 0) | (raw > 1)
        assert outside.any() and ((raw == 0) | (raw == 1)).any()
        want[outside] = 0
    got = first_gradient(engine)
    assert_relatively_close(got, want)
    assert not clamp or (got[outside] == 0).all()


@pytest.mark.parametrize("batch_tasks", [True, False])
def test_gradients_of_a_term_of_whole_draws_equal_autograd(batch_tasks):
    """A draw's term is of its own mean, not of the step's or the task's."""
    options = {"loss": information, "batch_tasks": batch_tasks, "clamp": False}
    engine = make_engine(dtype=torch.float64, **options)
    raw = spread_raw(engine)
    want = explicit_gradient(engine, Plain, raw)
    plain = explicit_gradient(make_engine(dtype=torch.float64), Plain, raw)
    assert (want - plain).norm() > 0.1 * plain.norm()
    assert_relatively_close(first_gradient(engine), want)


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_coefficients_that_start_on_the_boundary_do_move(start):
    engine = make_engine(steps=3)
    engine.coefficients.raw.data.fill_(start)
    moved = learned(engine) != start
    inner = [key != "unused" for key in engine.weights.keys]
    assert moved[:, inner].all()


@pytest.mark.parametrize("per_layer", [False, True])
def test_gradients_through_a_mixing_map(per_layer):
    layers = len(make_engine().weights.keys)
    torch.manual_seed(5)
    shape = (layers, TASKS, TASKS) if per_layer else (TASKS, TASKS)
    mixing = torch.randn(shape, dtype=torch.float64)
    engine = make_engine(dtype=torch.float64, mixing=mixing)
    raw = spread_raw(engine)
    clamped = raw.clamp(0, 1)
    maps = mixing if per_layer else mixing.expand(layers, TASKS, TASKS)
    effective = torch.stack([maps[c] @ clamped[:, c] for c in range(layers)], dim=1)
    through_merge = explicit_gradient(engine, Plain, effective)
    (want,) = torch.autograd.grad(effective, raw, through_merge)
    boundary = (raw == 0) | (raw == 1)  # where torch.clamp depends on its version
    got = first_gradient(engine)
    assert_relatively_close(got[~boundary], want[~boundary])
    assert (got[boundary] != 0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_the_formula(kind):
    engine = make_engine(kind, dtype=torch.float64)
    values = spread_raw(engine).detach().clamp(0, 1)
    engine.materialise()
    base, experts = models(kind, torch.float64)
    state = engine.weights.module.state_dict()
    for column, key in enumerate(engine.weights.keys):
        want = base.state_dict()[key].clone()
        for row, expert in enumerate(experts.values()):
            change = expert.state_dict()[key] - base.state_dict()[key]
            want += values[row, column] * change
        torch.testing.assert_close(state[key], want, rtol=0, atol=1e-13)


def test_an_unused_parameter_and_an_unmoved_one_have_no_gradient():
    base, experts = models(Plain, torch.float64)
    for expert in experts.values():
        expert.stem.bias.data.copy_(base.stem.bias)
    engine = make_engine(dtype=torch.float64, experts=experts)
    gradient = first_gradient(engine)
    keys = list(engine.weights.keys)
    assert (gradient[:, keys.index("unused")] == 0).all()
    assert (gradient[:, keys.index("stem.bias")] == 0).all()
    assert not engine.weights.module.stem.bias.requires_grad
    assert (gradient[:, keys.index("stem.weight")] != 0).all()


def test_running_statistics_are_merged_but_not_updated_by_the_samples():
    engine = make_engine(Normed)
    learned(engine)
    norm = engine.weights.module.norm
    column = engine.weights.keys.index("norm.running_mean")
    base, experts = models(Normed)
    want = base.norm.running_mean.clone()
    for expert in experts.values():
        want += 0.3 * (expert.norm.running_mean - base.norm.running_mean)
    assert (engine.coefficients.raw[:, column] == 0.3).all()
    torch.testing.assert_close(norm.running_mean, want, rtol=0, atol=1e-6)
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "dtype, bound", [(torch.float32, 1e-6), (torch.float64, 1e-12)]
)
def test_one_forward_or_several_make_no_difference(kind, dtype, bound):
    runs = [
        learned(make_engine(kind, dtype=dtype, batch_tasks=option))
        for option in (True, False, "auto")
    ]
    assert (runs[0] - 0.3).abs().max() > 0.02
    for other in runs[1:]:
        torch.testing.assert_close(other, runs[0], rtol=0, atol=bound)


def test_auto_takes_fewer_tasks_where_memory_is_short(monkeypatch):
    from fusion_plugins.adaptation import batching

    engine = make_engine()
    per_task = batching._activation_bytes(engine.predictor, engine.schedule.draws(0)[0])
    assert per_task > 0
    for budget, want in ((0, [1, 1, 1]), (2 * per_task, [2, 1]), (9 * per_task, [3])):
        monkeypatch.setattr(batching, "_budget", lambda device, b=budget: b)
        first = engine.schedule.draws(0)
        groups = batching.plan_groups(engine.predictor, first, "auto")
        assert [len(g) for g in groups(first)] == want


def test_the_applied_values_are_reported_before_mixing():
    mixing = 2 * torch.eye(TASKS)
    coefficients = Coefficients(TASKS, 4, "task", init=1.5, mixing=mixing)
    assert coefficients.applied().shape == (TASKS, 4)
    assert (coefficients.applied() == 1).all()
    assert (coefficients.effective() == 2).all()


def test_errors_of_coefficients():
    with pytest.raises(ValueError, match="granularity is 'row', expected one of"):
        Coefficients(2, 3, "row")
    with pytest.raises(ValueError, match=r"shape \(2, 4\), this run learns \(2, 3\)"):
        Coefficients(2, 3).load(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"learns \(2,\) \(tasks\)"):
        Coefficients(2, 3, "task").load(torch.zeros(2, 3))
