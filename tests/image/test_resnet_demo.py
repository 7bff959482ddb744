"""The small ResNet pool: built from files, measured, and used through configs."""

import json
from pathlib import Path

import fusion_bench
import numpy as np
import pytest
import torch
from fusion_bench.utils import instantiate
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from fusion_plugins import AWDAlgorithm
from fusion_plugins.cli import main
from fusion_plugins.demo import (
    demo_resnet_modelpool,
    demo_resnet_taskpool,
)
from fusion_plugins.demo.npz_folder import load_tasks
from fusion_plugins.demo.pool_folder import read_description
from fusion_plugins.demo.recipe import ResNetRecipe
from fusion_plugins.demo.resnet_build import build_resnet_pool
from fusion_plugins.pools.loading import load_module

TASKS = ("bars", "dots")
SMALL = {"width": 4, "image_size": 16, "pretrain_steps": 20, "expert_steps": 20}
SITE = Path(fusion_bench.__file__).resolve().parents[1]
UPSTREAM = next(
    p for p in (SITE / "fusion_bench_config", SITE / "config") if p.is_dir()
)


def write_task(folder: Path, name: str, classes: int) -> None:
    """Brightness tells the class."""
    draw = np.random.default_rng(classes)
    arrays = {}
    for split, count in (("train", 60), ("test", 20)):
        labels = np.arange(count) % classes
        noise = draw.integers(0, 30, (count, 16, 16))
        step = 200 // classes
        arrays[f"x_{split}"] = (noise + step * labels[:, None, None]).astype(np.uint8)
        arrays[f"y_{split}"] = labels
    names = np.array([f"{name} {i}" for i in range(classes)])
    np.savez(folder / f"{name}.npz", **arrays, class_names=names)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("npz")
    for classes, name in enumerate(TASKS, start=2):
        write_task(folder, name, classes)
    return folder


@pytest.fixture(scope="module")
def root(data, tmp_path_factory) -> Path:
    recipe = ResNetRecipe(tasks=TASKS, **SMALL)
    return build_resnet_pool(recipe, tmp_path_factory.mktemp("pools") / "pool", data)


def weights(root: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(root / "experts" / name / "model.safetensors")


def test_the_description_holds_what_the_task_pool_measures(root):
    scores = read_description(root)["accuracy"]["experts"]
    pool = demo_resnet_modelpool(root)
    assert list(scores) == pool.model_names == list(TASKS)
    for task in TASKS:
        expert = load_module(pool, task)
        report = demo_resnet_taskpool(root, tasks=task).evaluate(expert)
        assert report[task]["accuracy"] == pytest.approx(scores[task], abs=1e-6)


def test_experts_have_their_tasks_classes_and_moved_statistics(root):
    pool = demo_resnet_modelpool(root)
    base = pool.load_model("_pretrained_")
    assert base.classifier[1].out_features == 5
    for classes, task in enumerate(TASKS, start=2):
        expert = pool.load_model(task)
        assert expert.classifier[1].out_features == classes
        name = "resnet.embedder.embedder.normalization.running_var"
        assert not torch.equal(expert.state_dict()[name], base.state_dict()[name])


def test_the_same_recipe_gives_the_same_experts(root, data, tmp_path):
    again = build_resnet_pool(ResNetRecipe(tasks=TASKS, **SMALL), tmp_path / "p", data)
    for task in TASKS:
        ours, theirs = weights(root, task), weights(again, task)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    other = ResNetRecipe(tasks=TASKS, seed=1, **SMALL)
    assert other.hash() != ResNetRecipe(tasks=TASKS, **SMALL).hash()


def test_the_aliases_merge_and_evaluate(root):
    overrides = ["method=awd", "modelpool=demo-resnet", "taskpool=demo-resnet"]
    overrides += [f"modelpool.root={root}", f"taskpool.root={root}"]
    with initialize_config_dir(str(UPSTREAM), version_base=None):
        config = compose("fabric_model_fusion", overrides=overrides)
    pool, taskpool = instantiate(config.modelpool), instantiate(config.taskpool)
    assert type(taskpool).__module__.startswith("fusion_bench.")
    report = taskpool.evaluate(AWDAlgorithm().run(pool))
    assert {*TASKS, "average"} < set(report)
    assert len(pool.load_val_dataset("bars")) == 6


def test_the_command_builds_and_says_how_to_go_on(data, tmp_path, capsys):
    options = ["--data", str(data), "--out", str(tmp_path / "new"), "--tasks", "bars"]
    steps = ["--pretrain-steps", "2", "--expert-steps", "2", "--width", "4"]
    assert main(["demo", "build-resnet", *options, *steps]) == 0
    shown = capsys.readouterr().out
    assert f"modelpool=demo-resnet modelpool.root={tmp_path / 'new'}" in shown
    assert "bars" in shown and "experts" in shown
    assert main(["demo", "build-resnet", *options, *steps]) == 2
    assert "is not an empty folder; choose another" in capsys.readouterr().err
    assert not list(tmp_path.glob(".new.building-*"))


def test_a_build_that_fails_leaves_nothing(data, tmp_path, monkeypatch):
    from fusion_plugins.demo import resnet_build

    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(resnet_build, "train_expert", fail)
    with pytest.raises(KeyboardInterrupt):
        build_resnet_pool(ResNetRecipe(tasks=TASKS, **SMALL), tmp_path / "p", data)
    assert [path.name for path in tmp_path.iterdir()] in ([], [".p.lock"])


def test_files_come_before_built_in_tasks_of_the_same_name(data, tmp_path):
    write_task(tmp_path, "digits", 3)
    recipe = ResNetRecipe(tasks=("digits",), image_size=16)
    (task,) = load_tasks(recipe, tmp_path)
    assert len(task.class_names) == 3 and task.x_train.shape == (60, 16, 16, 3)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda data: load_tasks(ResNetRecipe(tasks=("cats",)), data),
            "unknown built-in tasks",
        ),
        (lambda data: load_tasks(ResNetRecipe(), data / "no"), "is not a folder"),
        (lambda data: ResNetRecipe(tasks=("a", "a")), "each once"),
        (
            lambda data: ResNetRecipe(width=0),
            "width is 0, expected a whole number >= 1",
        ),
        (
            lambda data: demo_resnet_modelpool(data),
            "fusion-plugins demo build-resnet --help",
        ),
    ],
)
def test_wrong_input_is_named(data, act, message):
    with pytest.raises(ValueError, match=message):
        act(data)


def test_pools_of_another_kind_and_unknown_tasks_are_refused(root, tmp_path):
    with pytest.raises(ValueError, match=r"unknown tasks \['cats'\]"):
        demo_resnet_taskpool(root, tasks=["cats"])
    (tmp_path / "pool.json").write_text(json.dumps({"format_version": 1}))
    with pytest.raises(ValueError, match="is a pool of format 1, not resnet-1"):
        demo_resnet_modelpool(tmp_path)
    with pytest.raises(
        ValueError, match="batch_size is 0, expected a whole number >= 1"
    ):
        demo_resnet_taskpool(root, batch_size=0)
