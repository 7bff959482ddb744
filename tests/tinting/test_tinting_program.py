"""The shipped methods from their config to a reloaded model, by FusionBench's program."""

import json
from pathlib import Path

import fusion_bench
import pytest
import torch
from fusion_bench.modelpool import CLIPVisionModelPool
from fusion_bench.programs import FabricModelFusionProgram
from fusion_bench.utils import instantiate
from hydra import compose, initialize_config_dir
from transformers import CLIPVisionModel

from fusion_plugins import TintedModel, TintingAlgorithm
from fusion_plugins.demo import demo_modelpool, demo_taskpool

SITE = Path(fusion_bench.__file__).resolve().parents[1]
CONFIG = next(p for p in (SITE / "fusion_bench_config", SITE / "config") if p.is_dir())
UPSTREAM = "fusion_bench.taskpool.CLIPVisionModelTaskPool"
TASKS = ("digits", "textures", "colours")


def composed(*overrides: str):
    with initialize_config_dir(str(CONFIG), version_base=None):
        return compose("fabric_model_fusion", overrides=list(overrides))


def run_program(root: Path, folder: Path, method: str, *overrides: str) -> dict:
    config = composed(
        f"method={method}",
        "modelpool=demo",
        f"modelpool.root={root}",
        "taskpool=demo",
        f"taskpool.root={root}",
        "method.rounds=20",
        "method.num_workers=0",
        "method.checkpoint_dir=null",
        "method.seed=0",
        *overrides,
    )
    program = FabricModelFusionProgram(
        config.method,
        config.modelpool,
        config.taskpool,
        print_config=False,
        merged_model_save_path=str(folder / "model"),
        report_save_path=str(folder / "report.json"),
    )
    program._fabric_instance = instantiate({"_target_": "lightning.Fabric", "devices": 1, "accelerator": "cpu"})  # fmt: skip
    return program.run() | {"program": program}


def numbers(report: dict) -> dict:
    return {task: report[task] for task in (*TASKS, "average")}


@pytest.mark.parametrize("method", ["tinting", "tinting_pp"])
def test_the_program_runs_saves_and_reports(method, tiny_pool_root, tmp_path):
    result = run_program(tiny_pool_root, tmp_path, method)
    algorithm, model = result["program"].method, result["merged_model"]
    assert type(algorithm) is TintingAlgorithm and isinstance(model, TintedModel)
    wanted = {"tinting": "none", "tinting_pp": "confidence_gap"}[method]
    assert algorithm.sampling == wanted
    assert len(algorithm.history) == 60
    report = json.loads((tmp_path / "report.json").read_text())
    assert numbers(report) == numbers(result["report"])

    again = TintedModel.from_pretrained(tmp_path / "model")
    ours = demo_taskpool(tiny_pool_root)
    assert numbers(ours.evaluate(again)) == numbers(report)
    theirs = demo_taskpool(tiny_pool_root, pool_class=UPSTREAM).evaluate(again)
    for task in TASKS:
        assert theirs[task]["accuracy"] == report[task]["accuracy"]
        assert theirs[task]["loss"] == pytest.approx(report[task]["loss"], abs=1e-5)

    trunk = CLIPVisionModel.from_pretrained(tmp_path / "model" / "trunk")
    for name, value in trunk.state_dict().items():
        assert torch.equal(value, model.trunk.state_dict()[name])
    plain = ours.evaluate(trunk)["average"]["loss"]
    assert abs(report["average"]["loss"] - plain) > 1e-3  # heads are not zero-shot ones


def test_defaults_of_the_configs_are_those_of_the_class():
    got = instantiate(composed("method=tinting").method, _recursive_=False).settings()
    want = TintingAlgorithm().settings()
    for settings in (got, want):  # what a program adds, and where it writes
        settings.pop("checkpoint_dir")
        settings.pop("_recursive_", None)
    assert got == want and len(got) > 35


@pytest.mark.parametrize(
    "tint", ["vision_model.encoder.layers.1", "visual_projection", "*.layer_norm1"]
)
def test_other_tints_run_by_the_program_too(tint, tiny_pool_root, tmp_path):
    result = run_program(
        tiny_pool_root, tmp_path, "tinting", f"method.tint='{tint}'", "method.rounds=5"
    )
    again = TintedModel.from_pretrained(tmp_path / "model")
    ours = demo_taskpool(tiny_pool_root)
    assert numbers(ours.evaluate(again)) == numbers(result["report"])
    assert len(again.sites) == (2 if "*" in tint else 1)


def test_the_fused_block_agrees_with_the_experts_more(tiny_pool_root):
    options = {"rounds": 20, "num_workers": 0, "save_model": False, "seed": 0}
    algorithm = TintingAlgorithm(
        tint="vision_model.encoder.layers.1", guard_every=60, lr=3e-3, **options
    )
    algorithm.run(demo_modelpool(tiny_pool_root))
    first, last = algorithm.guard_history
    assert last["agreement"] > first["agreement"] + 0.05


def test_a_pool_without_test_images_is_refused_at_once(tiny_pool_root, monkeypatch):
    pool = demo_modelpool(tiny_pool_root)
    pool._test_datasets = None
    loaded = []
    monkeypatch.setattr(
        CLIPVisionModelPool, "load_model", lambda *args, **kwargs: loaded.append(args)
    )
    with pytest.raises(ValueError, match="needs unlabelled test samples") as error:
        TintingAlgorithm(seed=0).run(pool)
    assert "no test_datasets for ['digits', 'textures', 'colours']" in str(error.value)
    assert "*_model_only do not" in str(error.value) and not loaded


def test_an_unknown_layer_of_clip_is_answered_with_near_names(tiny_pool_root):
    algorithm = TintingAlgorithm(tint="vision_model.encoder.layer.1", seed=0)
    with pytest.raises(ValueError, match="no layer is named") as error:
        algorithm.run(demo_modelpool(tiny_pool_root))
    assert "encoder.layers.1'" in str(error.value)
