"""Running statistics of batch normalisation in merged models."""

import logging

import numpy as np
import pytest
import torch
from tiny_image_pools import TASKS, Images, make_pool
from torch import nn

from fusion_plugins import (
    AdaMergingAlgorithm,
    AWDAlgorithm,
    TaskVectors,
    TintedModel,
    TintingAlgorithm,
)
from fusion_plugins.common.order import SampleOrder
from fusion_plugins.learned.batch_norm import with_batch_statistics
from fusion_plugins.merged.statistics import (
    BatchNorm,
    RunningStatistics,
    batch_norms,
    statistic_names,
)
from fusion_plugins.pools import adapter_for, load_base
from fusion_plugins.pools.clip_tasks import registered_tasks
from fusion_plugins.pools.families.image_classification import (
    ImageClassificationAdapter,
)
from fusion_plugins.pools.loading import load_module
from fusion_plugins.pools.recalibration import estimate, recalibrate

QUIET = {"guard_every": 0, "num_workers": 0, "save_model": False, "seed": 0}
QUIET |= {"checkpoint_dir": None, "batch_size": 4}


def toy(mean: float, variance: float) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU())
    model[1].running_mean.fill_(mean)
    model[1].running_var.fill_(variance)
    return model


def toy_pool() -> dict[str, nn.Module]:
    """Merged with 2 each, the variance would be 5 + 2 (1 - 5) + 2 (3 - 5) = -7."""
    return {"_pretrained_": toy(0, 5), "a": toy(1, 1), "b": toy(4, 3)}


def doubled(choice: str) -> nn.Module:
    from fusion_bench.method import TaskArithmeticAlgorithm

    base = TaskArithmeticAlgorithm(scaling_factor=2.0)
    return AWDAlgorithm(base=base, batch_norm=choice, iterations=0).run(toy_pool())


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return make_pool("resnet", tmp_path_factory.mktemp("resnet"))


@pytest.fixture(scope="module")
def learned(pool) -> dict[str, nn.Module]:
    """Choice -> the model of a short AdaMerging run."""
    return {
        choice: AdaMergingAlgorithm(
            preset="official", steps=2, lr=0.1, batch_norm=choice, **QUIET
        ).run(pool)
        for choice in [choice.value for choice in BatchNorm]
    }


def statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    state = module.state_dict()
    return {name: state[name] for name in statistic_names(module)}


def every_input(pool, task: str) -> torch.Tensor:
    adapter = adapter_for(pool)
    adapter.prepare(torch.device("cpu"))
    samples = [Images(task)[i] for i in range(len(Images(task)))]
    return adapter.decode(torch.stack([adapter.encode(s) for s in samples]))


def test_the_names_are_those_of_the_state_dict(pool):
    base = load_base(pool)
    found = statistic_names(base)
    assert len(found) == 2 * len(batch_norms(base)) > 4
    assert set(found) == {n for n in base.state_dict() if "running_" in n}
    assert statistic_names(nn.BatchNorm1d(2)) == ["running_mean", "running_var"]
    assert not statistic_names(nn.BatchNorm1d(2, track_running_stats=False))


@pytest.mark.parametrize(
    ("choice", "mean", "variance"), [("average", 2.5, 2.0), ("pretrained", 0.0, 5.0)]
)
def test_statistics_take_no_part_in_the_merge(choice, mean, variance):
    merged = doubled(choice)
    assert merged[1].running_mean.tolist() == [mean, mean]
    assert merged[1].running_var.tolist() == [variance, variance]


def test_a_merged_variance_that_is_negative_becomes_the_experts_average(caplog):
    with caplog.at_level(logging.WARNING):
        merged = doubled("merged")
    assert merged[1].running_mean.tolist() == [10, 10]  # 2 * 1 + 2 * 4
    assert merged[1].running_var.tolist() == [2, 2]
    assert merged(torch.randn(2, 1, 3, 3)).isfinite().all()
    assert "2 running variances in 1 layers zero or negative, as in '1." in caplog.text
    assert "recalibrated_per_task" in caplog.text


def test_positive_merged_variances_are_left_alone(caplog):
    with caplog.at_level(logging.WARNING):
        merged = AWDAlgorithm(batch_norm="merged", iterations=0).run(toy_pool())
    want = 5 + 0.3 * (1 - 5) + 0.3 * (3 - 5)
    assert merged[1].running_var.tolist() == pytest.approx([want, want])
    assert "zero or negative" not in caplog.text


def test_statistics_do_not_turn_the_disentangling():
    far = toy_pool()
    far["a"][1].running_var.fill_(1e6)
    for model, scale in ((far["a"], 0.1), (far["b"], 0.2)):
        model[0].weight.data.add_(scale)
        model[0].bias.data.sub_(scale**2)
    solved = []
    for choice in ("average", "merged"):
        algorithm = AWDAlgorithm(batch_norm=choice, alpha=1e-3)
        algorithm.run(far)
        solved.append(algorithm.disentanglement.solution.coefficients)
    tensors = algorithm.disentanglement.gram.keys
    assert "1.running_var" in tensors
    without = TaskVectors.from_modules(far["_pretrained_"], {t: far[t] for t in "ab"})
    names = RunningStatistics(BatchNorm.AVERAGE, far["_pretrained_"], without).apart
    assert names == ["1.running_mean", "1.running_var"]
    assert not torch.allclose(solved[0], solved[1])


def test_kept_statistics_stay_the_bases():
    merged = AWDAlgorithm(keep=["*running*"], iterations=0).run(toy_pool())
    assert merged[1].running_var.tolist() == [5, 5]


def test_estimated_statistics_are_averages_over_batches():
    model = toy(0, 5).eval()
    batches = [torch.randn(6, 1, 2, 2) + i for i in range(3)]
    hidden = [model[0](x) for x in batches]
    estimate(batch_norms(model), lambda: [model(x) for x in batches])
    mean = torch.stack([h.mean((0, 2, 3)) for h in hidden]).mean(0)
    variance = torch.stack([h.var((0, 2, 3)) for h in hidden]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean.detach())
    torch.testing.assert_close(model[1].running_var, variance.detach())
    assert not model[1].training and model[1].momentum == 0.1


class Uneven:
    """Stands for an adapter; a sample is its own number."""

    tasks = ("large", "small")

    def dataset(self, task: str, split: str) -> torch.Tensor:
        return torch.arange({"large": 200, "small": 1}[task]).float().view(-1, 1, 1, 1)

    def encode(self, sample):
        return sample

    decode = encode

    def features(self, module, inputs):
        return module(inputs)


def test_a_task_of_few_samples_is_in_the_batches_that_it_reaches():
    model = nn.Sequential(nn.BatchNorm2d(1))
    recalibrate(model, None, per_task=False, adapter=Uneven())
    chosen = SampleOrder(0, 128).subset("statistics of large", 200, 512)
    parts = [part.tolist() for part in np.split(chosen, 4)]
    parts[0] += [0]
    want = np.mean([np.mean(part) for part in parts])
    assert model[0].running_mean.item() == pytest.approx(want, abs=1e-4)


def test_layers_that_meet_nothing_are_named():
    model = toy(0, 5).eval()
    with pytest.raises(
        ValueError, match="layer '1' got no inputs from the samples of x"
    ):
        estimate(batch_norms(model), lambda: None, "x")


def test_batch_statistics_leave_the_running_ones(pool):
    module = load_base(pool).eval()
    before = {n: v.clone() for n, v in module.state_dict().items()}
    inputs = torch.randn(4, 3, 32, 32)
    got = with_batch_statistics(lambda m, x: m(x).logits)(module, inputs)
    assert all(torch.equal(v, before[n]) for n, v in module.state_dict().items())
    assert torch.equal(got, module.train()(inputs).logits)


def test_learned_methods_hold_the_chosen_statistics(pool, learned):
    base = statistics(load_base(pool))
    experts = [statistics(load_module(pool, task)) for task in TASKS]
    average = {n: sum(e[n] for e in experts) / len(experts) for n in base}
    start = {n: v + 0.3 * sum(e[n] - v for e in experts) for n, v in base.items()}
    # No gradient reaches the coefficients of merged ones: they keep their start values.
    expected = {"average": average, "pretrained": base, "merged": start}
    for choice, want in expected.items():
        got = statistics(learned[choice].trunk)
        assert got.keys() == want.keys()
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6)


def test_one_set_for_all_tasks_is_estimated_from_mixed_batches(pool, learned):
    model = learned["recalibrated"].eval()
    trunk = model.trunk
    adapter = adapter_for(pool)
    inputs = torch.cat(
        [every_input(pool, task) for task in TASKS]
    )  # one batch holds all
    seen = {}

    def note(name):
        return lambda layer, args: seen.update({name: args[0].detach()})

    layers = batch_norms(trunk)
    hooks = [m.register_forward_pre_hook(note(n)) for n, m in layers.items()]
    with_batch_statistics(adapter.features)(trunk, inputs)
    for hook in hooks:
        hook.remove()
    for name, layer in layers.items():
        mean, variance = seen[name].mean((0, 2, 3)), seen[name].var((0, 2, 3))
        torch.testing.assert_close(layer.running_mean, mean, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(layer.running_var, variance, rtol=1e-3, atol=1e-4)


def test_every_task_has_its_own_statistics(pool, learned):
    model = learned["recalibrated_per_task"].eval()
    names = set(batch_norms(load_base(pool)))
    assert set(model.sites) == {"classifier", *names}
    adapter = adapter_for(pool)
    for task in TASKS:
        model.set_task(task)
        inputs = every_input(pool, task)
        got = adapter.features(model.trunk, inputs)
        want = with_batch_statistics(adapter.features)(model.trunk, inputs)
        # Equal but for n / (n - 1) in the variance, largest where 20 values meet.
        torch.testing.assert_close(got, want, rtol=0.1, atol=0.05)


def test_a_model_with_statistics_per_task_is_saved_whole(pool, learned, tmp_path):
    model = learned["recalibrated_per_task"].eval()
    model.save_pretrained(tmp_path)
    again = TintedModel.from_pretrained(tmp_path).eval()
    inputs = torch.randn(2, 3, 32, 32)
    for task in TASKS:
        model.set_task(task)
        again.set_task(task)
        assert torch.equal(model(inputs).logits, again(inputs).logits)


def test_other_methods_results_can_be_recalibrated(pool):
    merged = AWDAlgorithm(iterations=0).run(pool)
    weights = {n: p.clone() for n, p in merged.trunk.named_parameters()}
    before = statistics(merged.trunk)
    before = {n: v.clone() for n, v in before.items()}
    again = recalibrate(merged, pool, per_task=False, samples=8)
    assert again is merged
    assert all(torch.equal(p, weights[n]) for n, p in merged.trunk.named_parameters())
    assert all(
        not torch.equal(v, before[n]) for n, v in statistics(again.trunk).items()
    )
    direct = AWDAlgorithm(
        iterations=0, batch_norm="recalibrated", batch_norm_samples=8
    ).run(pool)
    for name, value in statistics(direct.trunk).items():
        torch.testing.assert_close(value, statistics(again.trunk)[name])


def test_what_is_said_of_own_tasks_reaches_the_samples(pool, monkeypatch):
    said, init = [], ImageClassificationAdapter.__init__

    def noted(adapter, modelpool, task_info=None):
        said.append(task_info)
        init(adapter, modelpool, task_info)

    monkeypatch.setattr(ImageClassificationAdapter, "__init__", noted)
    tasks = {"img-a": {"classnames": ["dark", "dim", "bright"]}}
    options = {"batch_norm": "recalibrated", "batch_norm_samples": 8, "tasks": tasks}
    with registered_tasks():
        AWDAlgorithm(iterations=0, **options).run(pool)
    assert said and all(info == tasks for info in said)


def test_tinted_blocks_get_statistics_of_their_own(pool):
    layer = "resnet.encoder.stages.1"
    options = QUIET | {"rounds": 1, "tint": layer}
    with pytest.raises(ValueError, match=f"{layer}.*recalibrated_per_task"):
        TintingAlgorithm(batch_norm="recalibrated", **options).run(pool)
    model = TintingAlgorithm(batch_norm="recalibrated_per_task", **options).run(pool)
    own = [
        batch_norms(model.switches[model.sites.index(layer)]._option_modules[task])
        for task in ("img_a", "img_b")
    ]
    assert own[0] and own[0].keys() == own[1].keys()
    for name in own[0]:
        assert not torch.equal(own[0][name].running_var, own[1][name].running_var)


def test_models_without_batch_norm_are_left_alone(tmp_path):
    pool = make_pool("convnext", tmp_path)
    merged = AWDAlgorithm(batch_norm="recalibrated_per_task").run(pool)
    assert merged.sites == ("classifier",)


def test_a_run_survives_merged_variances_that_are_negative(tmp_path, caplog):
    pool = make_pool("resnet", tmp_path)
    options = QUIET | {"steps": 2, "init": 10.0, "batch_norm": "merged"}
    model = AdaMergingAlgorithm(**options, clamp=False).run(pool)
    assert "zero or negative" in caplog.text
    for name, value in statistics(model.trunk).items():
        assert value.isfinite().all()
        assert "mean" in name or (value > 0).all()


@pytest.mark.parametrize("make", [AWDAlgorithm, AdaMergingAlgorithm, TintingAlgorithm])
def test_options_are_checked(make):
    with pytest.raises(ValueError, match="batch_norm is 'mean', expected one of"):
        make(batch_norm="mean")
    with pytest.raises(ValueError, match="batch_norm_samples is 1, expected a whole"):
        make(batch_norm_samples=1)


@pytest.mark.parametrize("samples", [0, -1, "5"])
def test_recalibrating_needs_samples(samples):
    with pytest.raises(ValueError, match=f"samples is {samples!r}, expected a whole"):
        recalibrate(nn.BatchNorm1d(2), None, samples=samples)


def test_recalibrating_needs_a_pool_with_samples():
    with pytest.raises(
        TypeError, match="needs samples, and nothing knows those of a B"
    ):
        AWDAlgorithm(batch_norm="recalibrated").run(toy_pool())
