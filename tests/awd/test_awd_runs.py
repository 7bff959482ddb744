"""What a run leaves behind, says, and refuses."""

import json
import logging
import re
from copy import deepcopy
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from fusion_bench import BaseAlgorithm
from fusion_bench.method import TaskArithmeticAlgorithm, TiesMergingAlgorithm
from fusion_bench.modelpool import BaseModelPool
from fusion_bench.utils import LazyStateDict
from lightning.fabric.loggers import CSVLogger
from omegaconf import OmegaConf
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from fusion_plugins import AWDAlgorithm
from fusion_plugins.awd.base_method import linear_weights

OPTIONS = {"alpha": 1e-3, "lr": 0.1, "iterations": 40}


class GenericTaskArithmetic(TaskArithmeticAlgorithm):
    """Not recognised as a weighted sum: takes the generic path."""


def make_pool(experts: int = 3) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    shared = [torch.randn_like(p) for p in base.parameters()]
    pool = {"_pretrained_": base}
    for task in ("mnist", "svhn", "dtd")[:experts]:
        pool[task] = deepcopy(base)
        for parameter, common in zip(pool[task].parameters(), shared, strict=True):
            parameter.data.add_(0.1 * (torch.randn_like(parameter) + common))
    return pool


def with_logger(folder, **options) -> AWDAlgorithm:
    algorithm = AWDAlgorithm(**options)
    algorithm.fabric = L.Fabric(
        devices=1, accelerator="cpu", loggers=CSVLogger(str(folder))
    )
    return algorithm


@pytest.mark.parametrize("granularity", ["model", "tensor", "row"])
def test_the_report_holds_the_numbers_of_the_run(tmp_path, granularity):
    algorithm = with_logger(tmp_path, granularity=granularity, **OPTIONS)
    algorithm.run(make_pool())
    (file,) = tmp_path.rglob("awd.json")
    assert str(file.parent) == str(algorithm.log_dir)
    report = json.loads(
        file.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON")
    )
    result = algorithm.disentanglement
    assert report["tasks"] == ["mnist", "svhn", "dtd"]
    assert report["granularity"] == granularity
    assert report["settings"]["alpha"] == 1e-3
    assert report["tensors"] == 4
    assert (
        report["groups"] == {"model": 1, "tensor": 4, "row": 5 + 1 + 4 + 1}[granularity]
    )
    assert report["loss"] == result.solution.losses[:, 0].tolist()
    assert len(report["redundancy"]) == len(report["orthogonality"]) == 41
    assert report["delta_norm"] == result.delta_norm() > 0
    before, after = result.cosines()
    assert report["cosines_before"] == before.tolist()
    assert report["cosines_after"] == after.tolist()
    assert report["mean_absolute_cosine"][0] == pytest.approx(
        sum(abs(before[i, j].item()) for i in range(3) for j in range(3) if i != j) / 6
    )
    assert report["stationary_alpha"] == result.thresholds.max().item()
    if granularity == "model":
        assert report["coefficients"] == result.solution.coefficients[0].tolist()


def test_reported_norms_are_those_of_the_vectors():
    pool = make_pool()
    algorithm = AWDAlgorithm(scale_free=True, **OPTIONS)
    algorithm.run(pool)

    def flat(model):
        return torch.cat([p.detach().flatten() for p in model.parameters()]).double()

    taus = torch.stack(
        [flat(pool[t]) - flat(pool["_pretrained_"]) for t in list(pool)[1:]]
    )
    result = algorithm.disentanglement
    torch.testing.assert_close(result.task_vector_norms(), taus.norm(dim=1))
    delta = result.solution.coefficients[0] @ taus
    assert result.delta_norm() == pytest.approx(delta.norm().item(), rel=1e-5)


def test_the_picture_of_the_cosines_is_png_svg_and_pdf(tmp_path, rendered_pictures):
    with_logger(tmp_path, **OPTIONS).run(make_pool())
    (file,) = tmp_path.rglob("awd_cosines.png")
    assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 5000
    assert "mean |cos|" in file.with_suffix(".svg").read_text()
    assert file.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def test_one_expert_and_no_logger_are_reported_too(tmp_path, monkeypatch):
    with_logger(tmp_path, **OPTIONS).run(make_pool(experts=1))
    assert len(list(tmp_path.rglob("awd_cosines.png"))) == 1
    monkeypatch.chdir(tmp_path)
    held = set(tmp_path.rglob("*"))
    AWDAlgorithm(**OPTIONS).run(make_pool())
    assert set(tmp_path.rglob("*")) == held, "a run without a logger wrote files"


def test_the_loss_curve_reaches_the_logger(tmp_path, monkeypatch):
    algorithm = with_logger(tmp_path, **OPTIONS)
    logged = []
    monkeypatch.setattr(
        algorithm.fabric, "log_dict", lambda values, step: logged.append((step, values))
    )
    algorithm.run(make_pool())
    losses = algorithm.disentanglement.solution.losses
    assert [step for step, _ in logged] == list(range(41))
    names = ("awd/loss", "awd/orthogonality", "awd/redundancy")
    got = [[values[name] for name in names] for _, values in logged]
    assert got == losses.tolist()
    assert losses[-1, 0] != losses[0, 0]


def test_a_stationary_start_is_reported_with_its_threshold(caplog):
    algorithm = AWDAlgorithm(alpha=50.0)
    with caplog.at_level(logging.WARNING, "fusion_plugins"):
        algorithm.run(make_pool())
    (record,) = [r for r in caplog.records if "almost" in r.getMessage()]
    threshold = algorithm.disentanglement.thresholds.max().item()
    assert f"slope of the cosine term at delta=0, which is {threshold:.3g}" in (
        record.getMessage()
    )
    assert "alpha=50" in record.getMessage() and "scale_free" in record.getMessage()
    assert record.name.startswith("fusion_plugins.awd")
    caplog.clear()
    with caplog.at_level(logging.WARNING, "fusion_plugins"):
        AWDAlgorithm(alpha=0.9 * threshold, lr=1e-3).run(make_pool())
    assert not [r for r in caplog.records if "almost" in r.getMessage()]


def test_a_loss_that_rises_is_reported_with_what_to_do(caplog):
    algorithm = AWDAlgorithm(alpha=1e-3, lr=100.0, granularity="tensor", iterations=20)
    with caplog.at_level(logging.WARNING, "fusion_plugins"):
        algorithm.run(make_pool())
    losses = algorithm.disentanglement.solution.losses[:, 0]
    assert losses[-1] > 1.2 * losses[0]
    (record,) = [r for r in caplog.records if "loss rose" in r.getMessage()]
    assert f"from {losses[0]:.4g} to {losses[-1]:.4g}" in record.getMessage()
    assert "lr=100" in record.getMessage() and "'tensor'" in record.getMessage()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "fusion_plugins"):
        AWDAlgorithm(**OPTIONS).run(make_pool())
    assert "loss rose" not in caplog.text


def test_the_run_says_what_it_did(caplog):
    algorithm = AWDAlgorithm(**OPTIONS)
    with caplog.at_level(logging.INFO, "fusion_plugins"):
        algorithm.run(make_pool())
    before, after = (
        (c.abs().sum() - 3) / 6 for c in algorithm.disentanglement.cosines()
    )
    assert f"mean |cos| {before:.4f} -> {after:.4f}" in caplog.text


def test_the_base_method_shares_program_and_fabric(tmp_path):
    program = SimpleNamespace()
    base = GenericTaskArithmetic(0.3)
    algorithm = with_logger(tmp_path, base=base, **OPTIONS)
    algorithm._program = program
    algorithm.run(make_pool())
    assert base._program is program


def test_only_plain_weighted_sums_take_the_linear_path():
    module = nn.Linear(2, 2)
    got = linear_weights(TaskArithmeticAlgorithm(0.4), module, 3)
    assert got.tolist() == [0.4] * 3
    assert linear_weights(GenericTaskArithmetic(0.4), module, 3) is None


def test_linear_bases_materialise_no_expert(monkeypatch):
    def refuse(*args):
        raise AssertionError("a linear base needs no expert")

    monkeypatch.setattr("fusion_plugins.awd.algorithm.disentangled_pool", refuse)
    AWDAlgorithm(base=TaskArithmeticAlgorithm(0.3), **OPTIONS).run(make_pool())
    with pytest.raises(AssertionError, match="linear base"):
        AWDAlgorithm(base=GenericTaskArithmetic(0.3), **OPTIONS).run(make_pool())


@pytest.fixture(scope="module")
def clip_folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("clip")
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        num_hidden_layers=1,
        image_size=16,
        patch_size=8,
    )
    folders = {}
    for seed, name in enumerate(("_pretrained_", "mnist", "svhn")):
        torch.manual_seed(seed)
        folders[name] = str(root / name)
        CLIPVisionModel(config).save_pretrained(folders[name])
    return folders


def test_lazily_loaded_experts_are_disentangled_by_any_base(clip_folders):
    class LazyPool(BaseModelPool):
        def load_model(self, name, *args, **kwargs):
            return LazyStateDict(self._models[name], meta_module_class=CLIPVisionModel)

    options = {"alpha": 1e-4, "lr": 1.0, "iterations": 30}
    want = AWDAlgorithm(**options).run(clip_folders).state_dict()
    plain = AWDAlgorithm(iterations=0).run(clip_folders).state_dict()
    for base in (TaskArithmeticAlgorithm(0.3), GenericTaskArithmetic(0.3)):
        got = (
            AWDAlgorithm(base=base, **options).run(LazyPool(clip_folders)).state_dict()
        )
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, rtol=0, atol=1e-6)
    assert max((want[n] - plain[n]).abs().max() for n in want) > 1e-4


BAD_OPTIONS = {
    "alpha below zero": ({"alpha": -0.1}, ValueError, r"alpha is -0.1, .*\[0, inf"),
    "alpha nan": (
        {"alpha": float("nan")},
        ValueError,
        "alpha is nan, expected a number",
    ),
    "alpha inf": (
        {"alpha": float("inf")},
        ValueError,
        "alpha is inf, expected a number",
    ),
    "alpha text": ({"alpha": "0.1"}, ValueError, "alpha is '0.1', expected a number"),
    "alpha bool": ({"alpha": True}, ValueError, "alpha is True, expected a number"),
    "lr zero": ({"lr": 0}, ValueError, r"lr is 0, expected a number in \(0, inf"),
    "momentum": ({"momentum": 1.5}, ValueError, r"momentum is 1.5, .* in \[0, 1"),
    "weight decay": ({"weight_decay": -1}, ValueError, "weight_decay is -1, expected"),
    "tolerance": ({"tolerance": None}, ValueError, "tolerance is None, expected"),
    "iterations part": ({"iterations": 3.5}, ValueError, "iterations is 3.5, .*whole"),
    "iterations negative": ({"iterations": -1}, ValueError, "iterations is -1, .*>= 0"),
    "granularity": (
        {"granularity": "layer"},
        ValueError,
        "granularity is 'layer', expected one of .*'model', 'tensor', 'row'",
    ),
    "granularity list": (
        {"granularity": ["row"]},
        ValueError,
        "granularity is .'row'.",
    ),
    "scale_free": ({"scale_free": "yes"}, ValueError, "scale_free is 'yes', .*True"),
    "include string": (
        {"include": "*mlp*"},
        ValueError,
        r"include is '\*mlp\*', expected a list of patterns such as",
    ),
    "exclude number": ({"exclude": 5}, ValueError, "exclude is 5, expected a list"),
    "keep numbers": ({"keep": [1]}, ValueError, r"keep is \[1\], expected a list"),
    "typo": (
        {"granularty": "row"},
        TypeError,
        "'granularty'. Did you mean 'granularity'",
    ),
    "stranger": (
        {"zzz": 1},
        TypeError,
        "no option 'zzz'. Known options: .*alpha, lr",
    ),
}


@pytest.mark.parametrize(
    ("options", "error", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS
)
def test_bad_options_are_refused_before_anything_is_loaded(options, error, message):
    with pytest.raises(error, match=message):
        AWDAlgorithm(**options)


BAD_RUNS = {
    "base": (
        {"base": 0.3},
        TypeError,
        "base is a float; expected a FusionBench method",
    ),
    "include": (
        {"include": ["*attention*"]},
        ValueError,
        r"include: pattern '\*attention\*' matches none of the 4 tensors .*'0.weight'",
    ),
    "exclude": (
        {"exclude": ["0.wieght"]},
        ValueError,
        "exclude: pattern '0.wieght' matches none of the 4 tensors",
    ),
    "all excluded": ({"exclude": ["*"]}, ValueError, "leave none of the 4 tensors"),
    "all kept": ({"keep": ["*"]}, ValueError, "no floating tensor to merge"),
}


@pytest.mark.parametrize(
    ("options", "error", "message"), BAD_RUNS.values(), ids=BAD_RUNS
)
def test_options_that_do_not_fit_the_pool_are_refused(options, error, message):
    with pytest.raises(error, match=re.compile(message, re.DOTALL)):
        AWDAlgorithm(**options).run(make_pool())


def test_a_bad_expert_is_named_through_the_whole_run():
    pool = make_pool()
    pool["svhn"][0].weight.data[0, 0] = torch.nan
    with pytest.raises(
        ValueError, match="expert 'svhn': tensor '0.weight' holds 1 NaN"
    ):
        AWDAlgorithm(**OPTIONS).run(pool)


def test_saved_metadata_and_config_lists_are_accepted():
    algorithm = AWDAlgorithm(
        exclude=OmegaConf.create(["*.bias"]), _version_="0.2.33", _usage_="a note"
    )
    algorithm.run(make_pool())
    assert algorithm.disentanglement.gram.keys == ("0.weight", "1.weight")


class Several(BaseAlgorithm):
    def run(self, modelpool):
        return [modelpool.load_pretrained_model()]


def test_a_base_that_makes_several_models_is_refused():
    with pytest.raises(
        TypeError, match="base: Several returned a list, not one model."
    ):
        AWDAlgorithm(base=Several(), **OPTIONS).run(make_pool())


def test_a_bad_test_set_is_found_before_the_merge():
    def check_samples():
        raise ValueError("Task 'dtd': image 3 is not an image.")

    algorithm = AWDAlgorithm(**OPTIONS)
    taskpool = SimpleNamespace(check_samples=check_samples)
    algorithm._program = SimpleNamespace(taskpool=taskpool, path=None)
    with pytest.raises(ValueError, match="image 3 is not an image"):
        algorithm.run(make_pool())
    assert algorithm.disentanglement is None


@pytest.mark.parametrize("threshold", [100, 1])
def test_ties_that_trims_nothing(threshold):
    """FusionBench's own fails there."""
    method = TiesMergingAlgorithm(0.3, threshold, [], "sum")
    merged = AWDAlgorithm(base=method, iterations=0).run(pool := make_pool())
    assert method.threshold == threshold
    base = pool.pop("_pretrained_").state_dict()
    for name, value in merged.state_dict().items():
        vectors = torch.stack(
            [m.state_dict()[name] - base[name] for m in pool.values()]
        )
        elected = vectors.sum(0).sign()
        want = base[name] + 0.3 * vectors.where(vectors.sign() == elected, 0).sum(0)
        torch.testing.assert_close(value, want)


def test_a_base_method_takes_numpys_numbers():
    target = "fusion_bench.method.TaskArithmeticAlgorithm"
    base = {"_target_": target, "scaling_factor": np.float64(0.5)}
    got = AWDAlgorithm(base=base, iterations=np.int64(0)).run(make_pool())
    base["scaling_factor"] = 0.5
    want = AWDAlgorithm(base=base, iterations=0).run(make_pool())
    for name, value in want.state_dict().items():
        assert torch.equal(got.state_dict()[name], value)
