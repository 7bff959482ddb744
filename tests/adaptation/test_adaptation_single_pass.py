"""Update and next merge in one pass give what the two ordinary passes give."""

from dataclasses import replace

import pytest
import torch
from lightning import Fabric
from torch import nn
from toy_engine import FEATURES, TASKS, Normed, Plain, Tied, entropy, make_engine

from fusion_plugins.adaptation import (
    AdaptationDiverged,
    Callback,
    Checkpoints,
    CollapseGuard,
    single_pass,
)

IDLE = 4  # the step no sample of which is kept


@pytest.fixture
def passes(monkeypatch):
    """Steps that were taken in one pass."""
    taken, plain = [], single_pass.SinglePass.commit

    def commit(update):
        taken.append(update)
        plain(update)

    monkeypatch.setattr(single_pass.SinglePass, "commit", commit)
    return taken


def in_two_passes(monkeypatch):
    monkeypatch.setattr(single_pass, "fits", lambda engine: False)


def tinted_engine(kind=Plain, steps=10, dtype=torch.float64, **options):
    """With heads that learn in the same Adam, an idle step, and small groups."""

    def loss(task, logits, batch):
        values, weights = entropy(task, logits, batch)
        return values, weights * float(engine.step != IDLE)

    settings = {"loss": loss, "lr": 3e-2, "dtype": dtype, "steps": steps} | options
    engine = make_engine(kind, **settings)
    torch.manual_seed(7)
    for number, task in enumerate(engine.tasks):
        head = nn.Linear(FEATURES, 4 + number).to(dtype)
        own = tuple(head.parameters())
        engine.tasks[number] = replace(task, head=head, parameters=own)
        engine.optimizer.add_param_group({"params": list(own), "lr": 1e-3})
    return engine


def outcome(engine) -> dict[str, torch.Tensor]:
    """Everything that is learned, Adam's state, and the merged module."""
    found = dict(engine.weights.module.state_dict())
    for index, parameter in enumerate(engine.learned):
        found[f"learned.{index}"] = parameter.detach()
        for name, value in engine.optimizer.state[parameter].items():
            found[f"adam.{index}.{name}"] = value
    return {name: value.clone() for name, value in found.items()}


def assert_same(got, want, bound=0.0):
    assert sorted(got) == sorted(want)
    for name, value in want.items():
        torch.testing.assert_close(
            got[name],
            value,
            rtol=0,
            atol=bound,
            msg=lambda text, n=name: f"{n}: {text}",
        )


@pytest.mark.parametrize("kind", [Plain, Tied, Normed])
@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("group_bytes", [1, 2**30])
def test_one_pass_equals_two(kind, clamp, group_bytes, passes, monkeypatch):
    monkeypatch.setattr(single_pass, "_GROUP_BYTES", group_bytes)
    engine = tinted_engine(kind, clamp=clamp)
    engine.coefficients.raw.data[0].fill_(0.98)  # some leave the clamp's interval
    engine.run()
    assert len(passes) == 8  # all but the first, which makes Adam's state, and the idle
    raw = engine.coefficients.raw.detach()
    assert (raw > 1).any() and (raw[1:] - 0.3).abs().max() > 0.05
    in_two_passes(monkeypatch)
    plain = tinted_engine(kind, clamp=clamp)
    plain.coefficients.raw.data[0].fill_(0.98)
    plain.run()
    assert len(passes) == 8
    assert_same(outcome(engine), outcome(plain), bound=1e-12)


def test_options_of_adam_are_heeded(passes, monkeypatch):
    def made():
        engine = tinted_engine()
        first = {"betas": (0.7, 0.95), "eps": 1e-3, "lr": 0.02}
        engine.optimizer.param_groups[0].update(first)
        engine.run()
        return outcome(engine)

    got = made()
    assert len(passes) == 8
    in_two_passes(monkeypatch)
    assert_same(got, made(), bound=1e-12)


class Reports(Callback):
    def __init__(self):
        self.seen = []

    def on_step(self, engine, report):
        self.seen.append(report)


@pytest.mark.parametrize("stop_at", [3, 5, 8])
def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(tmp_path, stop_at, passes):
    def made(resume, steps=10):
        saver = Checkpoints(tmp_path, {"run": 1}, every=1, keep=20, resume=resume)
        saver.on_end = lambda engine: None
        reports = Reports()
        callbacks = [saver.restorer(), reports, saver]
        engine = tinted_engine(steps=steps, dtype=torch.float32, callbacks=callbacks)
        engine.run()
        return outcome(engine), reports.seen, saver

    want, seen, saver = made("never")
    before = len(passes)
    path = saver.folder / f"step_{stop_at:08d}"
    got, later, _ = made(str(path))
    assert later == seen[stop_at:]
    assert len(passes) - before == 10 - stop_at - (stop_at <= IDLE)
    assert_same(got, want)


def test_a_guard_sees_what_it_sees_after_two_passes(passes, monkeypatch):
    def made():
        guard = CollapseGuard(every=2, samples=40)
        engine = make_engine(dtype=torch.float64, callbacks=[guard], lr=1e-2)
        engine.run()
        return guard.history

    got = made()
    assert len(passes) == 9
    in_two_passes(monkeypatch)
    for one, two in zip(got, made(), strict=True):
        assert one["agreement"] == two["agreement"]
        for task, health in two["tasks"].items():
            assert one["tasks"][task]["histogram"] == health["histogram"]
            assert one["tasks"][task]["entropy"] == pytest.approx(health["entropy"])


@pytest.mark.parametrize("where", ["loss", "gradient", "head"])
def test_a_nan_changes_nothing(where, passes):
    engine = tinted_engine()
    plain = engine.loss

    def spoiled(task, logits, batch):
        values, weights = plain(task, logits, batch)
        if engine.step == 6 and where == "loss":
            values = values * float("nan")
        if engine.step == 6 and where == "gradient":
            values = values + (logits.sum(1) * 0).sqrt()
        return values, weights

    def spoil_head(gradient):
        return gradient * float("nan") if engine.step == 6 else gradient

    engine.loss = spoiled
    if where == "head":
        engine.tasks[1].parameters[0].register_hook(spoil_head)
    states = []
    engine.callbacks = [Noting(states)]
    with pytest.raises(AdaptationDiverged, match="at step 6. The last checkpoint"):
        engine.run()
    assert len(passes) == 4 and engine.step == 6
    after = outcome(engine)
    assert all(torch.isfinite(value).all() for value in after.values())
    learned = {n: v for n, v in after.items() if n.startswith(("learned", "adam"))}
    assert_same(learned, states[-1])
    engine.materialise()
    assert_same(outcome(engine), after)


class Noting(Callback):
    def __init__(self, states):
        self.states = states

    def on_step(self, engine, report):
        found = outcome(engine).items()
        kept = {n: v for n, v in found if n.startswith(("learned", "adam"))}
        self.states.append(kept)


def hooked_optimizer(engine):
    engine.optimizer.register_step_post_hook(lambda *_: None)


def watched_gradient(engine):
    engine.coefficients.raw.register_hook(lambda gradient: None)


def another_group_option(name, value=True):
    return lambda engine: engine.optimizer.param_groups[0].update({name: value})


def two_processes(engine):
    kind = type("Two", (Fabric,), {"world_size": 2})
    engine.fabric.__class__ = kind


def scaled_gradients(engine):
    engine.fabric._precision.scaler = object()


CHANGES = {
    "step hook": hooked_optimizer,
    "gradient hook": watched_gradient,
    "amsgrad": another_group_option("amsgrad"),
    "foreach": another_group_option("foreach"),
    "maximize": another_group_option("maximize"),
    "weight decay": another_group_option("weight_decay", 0.1),
    "two processes": two_processes,
    "gradient scaler": scaled_gradients,
    "no state": lambda engine: engine.optimizer.state.clear(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_circumstances_take_two_passes(change):
    engine = make_engine()
    engine._prepare()
    assert not single_pass.fits(engine)  # Adam has no state yet
    engine.train_step()
    assert single_pass.fits(engine)
    CHANGES[change](engine)
    assert not single_pass.fits(engine)


@pytest.mark.parametrize(
    "options",
    [{"granularity": "task"}, {"mixing": torch.eye(TASKS)}, {"lr": torch.tensor(1e-2)}],
    ids=lambda options: next(iter(options)),
)
def test_other_coefficients_take_two_passes(options, passes):
    make_engine(steps=3, **options).run()
    assert not passes


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_other_optimisers_take_two_passes(kind, passes):
    engine = make_engine(steps=3)
    engine.optimizer = kind(engine.coefficients.parameters(), lr=1e-2)
    engine.run()
    assert not passes and (engine.coefficients.raw != 0.3).any()


def test_frozen_coefficients_are_merged_once(passes, monkeypatch):
    engine = tinted_engine()
    engine.coefficients.raw.requires_grad_(False)
    merges, plain = [], engine.weights.materialise
    engine.weights.materialise = lambda c: merges.append(c) or plain(c)
    engine._prepare()
    merges.clear()
    for _ in range(3):
        engine.train_step()
    assert len(merges) <= 1 and not passes


def moved_coefficients(engine):
    engine.coefficients.raw.data.add_(0.05)


def an_expert(engine):
    engine.weights.materialise_expert(1)


def written_weights(engine):
    with torch.no_grad():
        engine.weights.module.out.weight.zero_()


def changed_task_vectors(engine):
    engine.weights.stacks[0].mul_(1.5)


@pytest.mark.parametrize(
    "meddle", [moved_coefficients, an_expert, written_weights, changed_task_vectors]
)
def test_a_step_merges_anew_after_a_callback_has_meddled(meddle, passes, monkeypatch):
    class Meddling(Callback):
        def on_step(self, engine, report):
            if engine.step == 5:
                meddle(engine)

    def made():
        engine = make_engine(dtype=torch.float64, callbacks=[Meddling()])
        engine.run()
        return outcome(engine)

    got = made()
    assert len(passes) == 9
    in_two_passes(monkeypatch)
    assert_same(got, made(), bound=1e-12)
