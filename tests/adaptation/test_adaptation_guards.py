"""A run that goes wrong says so, and keeps what was good."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from torch import nn
from toy_engine import (
    Normed,
    Plain,
    cpu_fabric,
    learned,
    make_engine,
    make_guard,
    make_predictor,
    models,
)

from fusion_plugins.adaptation import (
    AdaptationDiverged,
    Checkpoints,
    CollapseGuard,
    JointSchedule,
    Losses,
    batching,
    expert_predictions,
)

LOGGER = "fusion_plugins.adaptation.guards"


def collapsing_engine(steps: int = 60, **options):
    """Experts whose random weights say little, and steps that are far too long."""
    _, experts = models(Plain, scale=0.05)
    predictor = make_predictor(experts=experts)
    guard = make_guard(predictor, every=5, stop=options.pop("stop", False))
    engine = make_engine(
        lr=3e-2, steps=steps, predictor=predictor, callbacks=[guard], **options
    )
    return engine, guard


def warnings_of(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == LOGGER]


def agreements(guard: CollapseGuard) -> dict[int, float]:
    return {entry["step"]: entry["agreement"] for entry in guard.history}


def test_a_collapse_is_announced_once_and_early(caplog):
    engine, guard = collapsing_engine()
    with caplog.at_level(logging.WARNING):
        engine.run()
    (text,) = warnings_of(caplog)
    seen = agreements(guard)
    step = int(text.split("at step ")[1].split(":")[0])
    assert step <= 30  # half-way at the latest
    entry = next(e for e in guard.history if e["step"] == step)
    worst = min(entry["tasks"], key=lambda name: entry["tasks"][name]["agreement"])
    best = max(value for at, value in seen.items() if at <= step)
    assert f"on {seen[step]:.1%} of the monitored samples, down from {best:.1%}" in text
    assert f"worst: '{worst}', {entry['tasks'][worst]['agreement']:.1%}" in text
    assert "stop_on_collapse=true" in text
    assert engine.step == 60


def test_stopping_returns_exactly_the_best_state(caplog):
    engine, guard = collapsing_engine(stop=True)
    with caplog.at_level(logging.WARNING):
        raw = learned(engine)
    assert engine.stopped and engine.step < 60
    best = guard.best["step"]
    assert agreements(guard)[best] == max(agreements(guard).values())
    until_best, _ = collapsing_engine(steps=max(best, 1))
    want = learned(until_best) if best else torch.full_like(raw, 0.3)
    assert torch.equal(raw, want)
    assert warnings_of(caplog)[-1] == (
        f"Stopped at step {engine.step}; the state of step {best} is returned, which"
        f" agrees best with the experts ({guard.best['agreement']:.1%})."
        " stop_on_collapse=false returns the last one."
    )
    merged = engine.weights.module.out.weight.clone()
    engine.materialise()
    assert torch.equal(merged, engine.weights.module.out.weight)


def test_the_best_state_may_lie_behind_the_start():
    """A run that first gains and then loses goes back to the peak between."""
    predictor = make_predictor()
    guard = make_guard(predictor, every=1, drop=0.03, stop=True)
    engine = make_engine(lr=1e-2, steps=60, predictor=predictor, callbacks=[guard])
    raw = learned(engine)
    best = guard.best["step"]
    assert 0 < best < engine.step < 60
    assert torch.equal(raw, learned(make_engine(lr=1e-2, steps=best)))


def test_no_gain_ends_a_run_and_the_end_returns_the_best_state(caplog):
    """With a fall that is no collapse: no warning, but the state of the peak."""
    ends = {}
    for patience in (0, 3):
        predictor = make_predictor()
        guard = make_guard(predictor, every=1, drop=1, excess=1, stop=True)
        guard.patience = patience
        engine = make_engine(lr=1e-2, steps=60, predictor=predictor, callbacks=[guard])
        with caplog.at_level(logging.INFO):
            raw = learned(engine)
        best, (text, *more) = guard.best["step"], warnings_of(caplog)
        caplog.clear()
        assert torch.equal(raw, learned(make_engine(lr=1e-2, steps=best)))
        assert f"the state of step {best} is returned" in text and not more
        ends[patience] = engine.step, best, text.split(";")[0]
    assert ends[0][0] == 60 and ends[0][2] == "The run ended at step 60"
    step, best, text = ends[3]
    assert step == best + 3 and text == f"No gain in 3 checks, at step {step}"


def test_a_healthy_run_does_not_warn(caplog):
    for lr in (1e-3, 1e-4):
        predictor = make_predictor()
        guard = make_guard(predictor, every=2, stop=True)
        engine = make_engine(lr=lr, steps=30, predictor=predictor, callbacks=[guard])
        with caplog.at_level(logging.WARNING):
            engine.run()
        assert engine.step == 30 and len(guard.history) == 16
    assert warnings_of(caplog) == []


def test_one_class_is_no_alarm_if_the_expert_says_the_same(caplog):
    predictor = make_predictor(experts=models(Plain, scale=0.05)[1])
    for task in predictor.tasks:
        task.head.bias.data[1] = 50.0  # experts and merge predict class 1 alone
    guard = make_guard(predictor, every=5)
    engine = make_engine(lr=3e-2, steps=10, predictor=predictor, callbacks=[guard])
    with caplog.at_level(logging.WARNING):
        engine.run()
    for entry in guard.history:
        assert all(t["top_share"] == 1 for t in entry["tasks"].values())
    assert warnings_of(caplog) == []


def test_a_narrowing_task_is_named_even_if_the_mean_hardly_falls(caplog):
    predictor = make_predictor()
    guard = make_guard(predictor, every=1, drop=0.2)
    engine = make_engine(steps=1, predictor=predictor, callbacks=[guard])
    guard.on_start(engine)
    # One head drifts to a single class; the other tasks stay where they are.
    engine.tasks[1].head.bias.data[0] = 50.0
    with caplog.at_level(logging.WARNING):
        guard._check(engine)
    (text,) = warnings_of(caplog)
    assert "Task(s) ['task1'] are predicted as nearly one class." in text


def test_what_the_guard_measures():
    predictor = make_predictor()
    guard = make_guard(predictor, 32, every=5)
    engine = make_engine(steps=5, predictor=predictor, callbacks=[guard])
    engine.run()
    entry = guard.history[-1]["tasks"]["task2"]
    logits = engine.predictor.logits(2, engine.tasks[2].source.monitored(32))
    expert = guard._experts["task2"]
    want = torch.distributions.Categorical(logits=logits.detach()).entropy().mean()
    assert entry["entropy"] == pytest.approx(want.item(), rel=1e-5)
    assert entry["histogram"] == torch.bincount(logits.argmax(1), minlength=6).tolist()
    assert entry["top_share"] == max(entry["histogram"]) / 32
    agreement = (logits.argmax(1) == expert).float().mean().item()
    assert entry["agreement"] == pytest.approx(agreement)
    _, experts = models(Plain)
    alone = experts["task2"](engine.tasks[2].source.monitored(32))
    assert torch.equal(engine.tasks[2].head(alone).argmax(1), expert)


def test_experts_are_asked_in_evaluation_mode():
    class Dropping(Normed):
        def __init__(self):
            super().__init__()
            self.norm = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5))

    predictor = make_predictor(Dropping)
    found = expert_predictions(predictor, 40)
    _, experts = models(Dropping)
    for index, (name, expert) in enumerate(experts.items()):
        task = predictor.tasks[index]
        want = task.head(expert.eval()(task.source.monitored(40))).argmax(1)
        assert torch.equal(found[name], want)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_stops_with_task_and_step_and_keeps_the_last_checkpoint(tmp_path, where):
    def spoiled(task, logits, batch):
        values = logits.logsumexp(1) - logits.mean(1)
        if task == "task1" and engine.step == 5:
            if where == "loss":
                values = values * float("nan")
            else:  # finite, but the root's slope at 0 is infinite times 0
                values = values + (logits.sum(1) * 0).sqrt()
        return Losses(values)

    def run(until: int, folder, **options):
        saver = Checkpoints(folder, {"run": 1}, every=2)
        made = make_engine(steps=until, callbacks=[saver], **options)
        return made, saver

    engine, saver = run(9, tmp_path / "a", loss=spoiled, batch_tasks=False)
    with pytest.raises(AdaptationDiverged, match="at step 5") as error:
        engine.run()
    assert "task1" in str(error.value) and "Lower lr" in str(error.value)
    if where == "loss":
        assert "task0" not in str(error.value)
    *_, newest = saver._saved()
    assert newest.name == "step_00000004"
    assert json.loads((newest / "state.json").read_text())["step"] == 4

    def sound(task, logits, batch):
        values = logits.logsumexp(1) - logits.mean(1)
        return Losses(values)

    again, resumed = run(4, tmp_path / "b", loss=sound, batch_tasks=False)
    want = learned(again)
    resumed.restore(again, newest)
    assert torch.equal(again.coefficients.raw.detach(), want)
    assert torch.isfinite(engine.coefficients.raw).all()  # no bad step was taken


def test_a_nan_in_a_tasks_own_parameters_stops_the_run():
    own = nn.Parameter(torch.zeros(()))

    def spoiled(task, logits, batch):
        values = logits.logsumexp(1) + (own.sqrt() * 0 if task == "task2" else 0)
        return Losses(values)

    predictor = make_predictor()
    predictor.tasks[2] = replace(predictor.tasks[2], parameters=(own,))
    engine = make_engine(loss=spoiled, predictor=predictor, own=[own])
    with pytest.raises(AdaptationDiverged, match="gradient.*task2.*step 0"):
        engine.run()
    assert own == 0 and (engine.coefficients.raw == 0.3).all()


def test_a_step_whose_samples_all_drop_out_changes_nothing():
    def none_kept(task, logits, batch):
        values = logits.logsumexp(1)
        return Losses(values, torch.zeros_like(values))

    engine = make_engine(steps=3, loss=none_kept)
    assert (learned(engine) == 0.3).all() and engine.step == 3


def test_a_draws_loss_is_the_weighted_mean_of_its_samples():
    def weighted(task, logits, batch):
        return Losses(logits[:, 0], (batch.samples % 3).float())

    engine = make_engine(steps=1, loss=weighted)
    engine.materialise()
    batch = engine.tasks[1].source.batch([0, 1])
    logits = engine.predictor.logits(1, batch.inputs)[:, 0]
    weight = (batch.samples % 3).float()
    want = sum(
        (logits[batch.draws == d] * weight[batch.draws == d]).sum()
        / weight[batch.draws == d].sum()
        for d in (0, 1)
    )
    report = engine.train_step()
    assert report.loss["task1"] == pytest.approx(want.item(), rel=1e-5)
    assert report.kept["task1"] == (weight > 0).sum() and report.samples == 48


def test_one_forward_for_all_tasks_is_refused_where_batch_norm_learns():
    predictor = make_predictor(Normed)
    predictor.weights.module.train()
    first = JointSchedule(3, 1).draws(0)
    with pytest.raises(ValueError, match="batch_tasks=true would mix the tasks' batch"):
        batching.plan_groups(predictor, first, True)
    groups = batching.plan_groups(predictor, first, "auto")
    assert [len(g) for g in groups(first)] == [1, 1, 1]
    with pytest.raises(ValueError, match="batch_tasks is 'all', expected 'auto'"):
        batching.plan_groups(predictor, first, "all")


def test_mixed_precision_stays_close_to_full_precision():
    full = learned(make_engine())
    mixed = learned(make_engine(fabric=cpu_fabric(precision="bf16-mixed")))
    assert 0 < (full - mixed).abs().max() < 0.03
    assert mixed.dtype == torch.float32
