"""Whole runs: repeated, interrupted, guarded, and on two processes."""

from pathlib import Path

import pytest
import tinting_cases
import torch
from forked import call
from lightning import Fabric
from toy_tinting import BLOCK, TASKS, make, tint, watched

from fusion_plugins.tinting import selection

KINDS = {
    "head": {"sampling": "confidence_gap"},
    "block": {"tint": BLOCK, "tint_init": "expert"},
    "projection": {"tint": ["projection", "head"], "labels": "soft"},
    "joint": {"schedule_kind": "joint", "sampling": "top_p"},
}


def bits(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_bits(one: dict, other: dict) -> None:
    assert one.keys() == other.keys() and len(one) > 10
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bits(kind):
    one, other = (bits(watched(**KINDS[kind])[0]) for _ in range(2))
    assert_same_bits(one, other)
    third = bits(watched(**KINDS[kind], **{"seed": 3})[0])
    assert any(not torch.equal(one[name], third[name]) for name in one)


# -- interrupted runs -----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_with_the_unbroken_runs_bits(kind, tmp_path):
    steps = 4 if kind == "joint" else 12
    options = KINDS[kind] | {"rounds": 4, "guard_every": 3, "checkpoint_every": 2}
    unbroken = make(**options)
    want = bits(tint(unbroken))

    options["checkpoint_dir"] = str(tmp_path)
    broken = make(**options)
    broken.watch.stop_after = 3 if kind == "joint" else 7
    with pytest.raises(KeyboardInterrupt):
        tint(broken)
    resumed = make(**options)
    got = bits(tint(resumed))
    first = broken.watch.stop_after - 1
    assert [r.step for r in resumed.watch.reports] == list(range(first, steps))
    assert_same_bits(got, want)
    assert torch.equal(resumed.result.raw, unbroken.result.raw)
    assert resumed.watch.learner.selection.kept == unbroken.watch.learner.selection.kept
    assert resumed.guard_history == unbroken.guard_history
    assert [e["loss"] for e in resumed.history] == [e["loss"] for e in unbroken.history]
    assert not list(tmp_path.glob("*/step_*"))  # a finished run needs none


@pytest.mark.parametrize(
    "change",
    [{"tint": "blocks.0"}, {"labels": "soft"}, {"tint_lr": 0.5}, {"rounds": 5}],
)
def test_a_run_with_other_options_does_not_continue(change, tmp_path):
    options = {"checkpoint_every": 2, "checkpoint_dir": str(tmp_path)}
    broken = make(**options)
    broken.watch.stop_after = 5
    with pytest.raises(KeyboardInterrupt):
        tint(broken)
    other = make(**(options | change))
    tint(other)
    assert other.watch.reports[0].step == 0
    (path,) = tmp_path.glob("*/step_00000004")
    with pytest.raises(ValueError, match=f"other settings .*{next(iter(change))}"):
        tint(make(**(options | change | {"resume": str(path)})))


# -- the guard ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_guard_judges_the_tinted_model(kind):
    """Its last word is the finished model's agreement with the experts."""
    rounds = 30 if kind == "joint" else 10  # 30 steps
    options = {"guard_every": 4, "guard_samples": 25, "lr": 3e-2, "rounds": rounds}
    options |= {"preset": "official"}  # the last state, not the best
    model, watch = watched(**(KINDS[kind] | options))
    history, agreements = watch.algorithm.guard_history, []
    adapter = watch.algorithm.adapter
    for task in TASKS:
        source = next(t.source for t in watch.engine.tasks if t.name == task)
        samples = source.data.monitored(25)
        model.set_task(task)
        projection = model.outer_layers(task).get("projection", adapter.projection())
        head = model.head(task) or adapter.heads()[task]
        with torch.no_grad():
            features = projection(model(source.inputs(samples)))
            logits = head(torch.nn.functional.normalize(features, dim=1))
        labels = watch.learner.teachers[task].labels[samples]
        assert (labels >= 0).all()
        agreements.append((logits.argmax(1) == labels).float().mean().item())
    assert history[-1]["agreement"] == pytest.approx(sum(agreements) / 3, abs=0.014)
    assert history[-1]["agreement"] > history[0]["agreement"]


def test_a_collapse_gives_back_the_best_coefficients_and_tints(monkeypatch):
    plain = selection.pseudo_label_loss
    steps = []

    def unlearn(logits, teacher):
        steps.append(1)
        return plain(logits, teacher) * (1 if len(steps) <= 9 else -1)

    monkeypatch.setattr(selection, "pseudo_label_loss", unlearn)
    options = {"guard_every": 3, "guard_samples": 40, "lr": 5e-2, "rounds": 12}
    model, watch = watched(stop_on_collapse=True, tint=["head", BLOCK], **options)
    best = watch.algorithm.guard_history
    best = max(best, key=lambda entry: entry["agreement"])["step"]
    assert 0 < best <= 15 and len(watch.reports) < 36
    assert torch.equal(watch.algorithm.result.raw, watch.states[best]["coefficients"])
    for name, want in watch.tints(best).items():
        task, site, parameter = name.split("/")
        layer = watch.learner.tints.layers[site][task]
        assert torch.equal(layer.get_parameter(parameter), want)
    assert torch.equal(model.head("aa").weight, watch.states[best]["aa/head/weight"])


# -- two processes --------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What each of two processes wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    call(tinting_cases.main, folder)
    return [torch.load(Path(folder) / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("case", tinting_cases.CASES)
def test_two_processes_equal_one(case, ranks):
    fabric = Fabric(accelerator="cpu", devices=1)
    want = tinting_cases.run_case(fabric, tinting_cases.CASES[case])
    assert (want["coefficients"] - 0.3).abs().max() > 0.02
    for rank in ranks:
        got = rank[case]
        torch.testing.assert_close(
            got["coefficients"], want["coefficients"], rtol=0, atol=1e-5
        )
        assert got["model"].keys() == want["model"].keys()
        for name, value in want["model"].items():
            torch.testing.assert_close(got["model"][name], value, rtol=0, atol=1e-5)
        assert got["losses"] == pytest.approx(want["losses"], abs=1e-5)
        assert got["kept"] == want["kept"]
        assert got["agreement"] == want["agreement"]
    one, other = (rank[case] for rank in ranks)
    assert_same_bits(one["model"], other["model"])
    for task, count in want["labelled"].items():  # each labels its own share
        assert one["labelled"][task] <= count and other["labelled"][task] <= count
