"""Selection on a small real CLIP pool: any method, and what its numbers are."""

import json

import pytest
import torch
from fusion_bench.method import TaskArithmeticAlgorithm
from lightning import Fabric, seed_everything
from lightning.fabric.loggers import CSVLogger
from torch import nn

from fusion_plugins import AdaMergingAlgorithm, AWDAlgorithm, SelectAlgorithm
from fusion_plugins.awd.base_method import build_base_method
from fusion_plugins.common.options import plain
from fusion_plugins.compare.composing import compose_method
from fusion_plugins.demo import demo_taskpool
from fusion_plugins.pools import adapter_for
from fusion_plugins.pools.replaced import read_once

QUICK = {"max_samples": 24, "num_workers": 0}
SCALING = {"scaling_factor": [0.1, 0.3, 0.9]}
# Config name -> lists; the last four are not linear in the task vectors.
METHODS = {
    "task_arithmetic": SCALING,
    "awd": {"scaling_factor": [0.3, 0.9], "alpha": [0, 0.1]},
    "ties_merging": SCALING | {"threshold": [20, 50]},
    "dare/task_arithmetic": {"sparsity_ratio": [0.3, 0.9]},
    "wudi/wudi": {"iter_num": [1, 3]},
    "task_singular_vector/TaskSingularVectorMerging": {"alpha": [0.5, 1.0]},
}


@pytest.fixture
def fabric(tmp_path) -> Fabric:
    return Fabric(accelerator="cpu", devices=1, loggers=CSVLogger(str(tmp_path)))


def config_of(name: str) -> dict:
    quick = {"iterations": 10} if name == "awd" else {}
    return plain(compose_method(name)) | quick


def select(pool, fabric, **options) -> tuple[SelectAlgorithm, nn.Module]:
    algorithm = SelectAlgorithm(**(QUICK | options))
    algorithm.fabric = fabric
    return algorithm, algorithm.run(pool)


def assert_same(got: nn.Module, want: nn.Module) -> None:
    theirs = want.state_dict()
    assert got.state_dict().keys() == theirs.keys() and theirs
    for name, value in got.state_dict().items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("name", METHODS)
def test_the_result_is_the_methods_own_with_the_best_options(
    tiny_modelpool, fabric, name
):
    base, over = config_of(name), METHODS[name]
    algorithm, merged = select(tiny_modelpool, fabric, base=base, over=over, seed=3)
    found = algorithm.response
    count = torch.tensor([len(values) for values in over.values()]).prod().item()
    assert len(found["candidates"]) == count
    whole = [c for c in found["candidates"] if not c["dropped"]]
    best = max(whole, key=lambda c: (c["mean"], c["worst"]))
    assert found["chosen"] == best["options"]
    for candidate in whole:
        assert set(candidate["samples"].values()) == {24}
        mean = sum(candidate["tasks"].values()) / 3
        assert candidate["mean"] == pytest.approx(mean)
    config = algorithm.options.grid.method(found["chosen"])
    # Loading draws random numbers too: a random method must find models loaded.
    pool = read_once(tiny_modelpool) if "dare" in name else tiny_modelpool
    seed_everything(3, verbose=False)
    assert_same(merged, build_base_method(config, None, fabric).run(pool))


def test_what_a_run_leaves(tiny_modelpool, fabric, tmp_path, rendered_pictures):
    algorithm, _ = select(tiny_modelpool, fabric, over=SCALING)
    (file,) = tmp_path.rglob("selection.json")
    assert json.loads(file.read_text()) == algorithm.response
    assert file.with_suffix(".png").stat().st_size > 5000
    assert algorithm.response["score"] == "agreement"


def test_models_are_read_once_and_stay_as_they_are(tiny_modelpool, fabric, monkeypatch):
    read = []
    kind = type(tiny_modelpool)
    load = kind.load_model

    def counted(self, name, *args, **kwargs):
        read.append(name)
        return load(self, name, *args, **kwargs)

    monkeypatch.setattr(kind, "load_model", counted)
    over = {"alpha": [0, 0.1], "scaling_factor": [0.3, 0.5]}
    select(tiny_modelpool, fabric, base=config_of("awd"), over=over)
    assert sorted(read) == sorted(tiny_modelpool.all_model_names)


@torch.no_grad()
def test_agreement_is_that_of_models_side_by_side(tiny_modelpool, fabric):
    options = {"over": {"scaling_factor": [0.2, 0.4]}, "drop_early": False}
    algorithm, _ = select(tiny_modelpool, fabric, max_samples=None, **options)
    adapter = adapter_for(tiny_modelpool)
    adapter.prepare(torch.device("cpu"))
    for candidate in algorithm.response["candidates"]:
        merged = TaskArithmeticAlgorithm(**candidate["options"]).run(tiny_modelpool)
        for task in adapter.tasks:
            data = adapter.dataset(task, "test")
            images = adapter.decode(torch.stack([data[i] for i in range(len(data))]))
            classes = [
                adapter.heads()[task](adapter.features(model.eval(), images)).argmax(-1)
                for model in (merged, tiny_modelpool.load_model(task))
            ]
            want = (classes[0] == classes[1]).float().mean().item()
            assert candidate["tasks"][task] == pytest.approx(want, abs=0.02)


def test_the_labels_score_is_the_task_pools_accuracy(
    tiny_modelpool, tiny_pool_root, fabric
):
    tiny_modelpool._val_datasets = tiny_modelpool._test_datasets
    options = {"score": "val", "over": {"scaling_factor": [0.3]}, "max_samples": 100}
    # A part of the labels, in another order, must be that of its samples.
    part, _ = select(tiny_modelpool, fabric, **options)
    algorithm, merged = select(
        tiny_modelpool, fabric, **(options | {"max_samples": None})
    )
    report = demo_taskpool(root=tiny_pool_root).evaluate(merged)
    (candidate,) = algorithm.response["candidates"]
    for task, value in candidate["tasks"].items():
        assert value == pytest.approx(report[task]["accuracy"], abs=1e-6)
        near = part.response["candidates"][0]["tasks"][task]
        assert abs(near - value) * 100 <= 20 + 1e-6  # 20 of 120 samples are left out
    assert algorithm.response["data"] == "val"


def test_layers_of_a_tasks_own_are_in_place(tiny_modelpool, tiny_pool_root, fabric):
    tiny_modelpool._val_datasets = tiny_modelpool._test_datasets
    base = {"_target_": "fusion_plugins.TintingAlgorithm", "rounds": 2, "lr": 0.1}
    base |= {"checkpoint_dir": None, "guard_every": 0, "max_samples": 24, "seed": 0}
    base["tint"] = ["head", "visual_projection", "vision_model.encoder.layers.1"]
    options = {"score": "val", "over": {"seed": [1]}, "max_samples": None}
    algorithm, merged = select(tiny_modelpool, fabric, base=base, **options)
    report = demo_taskpool(root=tiny_pool_root).evaluate(merged)
    (candidate,) = algorithm.response["candidates"]
    for task, value in candidate["tasks"].items():
        assert value == pytest.approx(report[task]["accuracy"], abs=1e-6)


def test_entropy_takes_the_most_certain(tiny_modelpool, fabric):
    algorithm, _ = select(tiny_modelpool, fabric, score="entropy", over=SCALING)
    means = [c["mean"] for c in algorithm.response["candidates"]]
    assert all(-2.4 < mean < 0 for mean in means)  # ln 10 classes


def test_without_over_the_scaling_is_scanned(tiny_modelpool, fabric, tmp_path):
    algorithm, merged = select(tiny_modelpool, fabric)
    assert len(algorithm.response["candidates"]) == 14
    chosen = algorithm.response["chosen"]
    assert_same(merged, TaskArithmeticAlgorithm(**chosen).run(tiny_modelpool))
    # AWD's scaling=auto is the same search.
    awd = {"alpha": 0, "iterations": 10}
    auto = AWDAlgorithm(scaling="auto", **awd)
    auto.fabric = fabric
    merged = auto.run(tiny_modelpool)
    (file,) = tmp_path.rglob("selection.json")
    scaling = json.loads(file.read_text())["chosen"]["scaling_factor"]
    base = TaskArithmeticAlgorithm(scaling_factor=scaling)
    assert_same(merged, AWDAlgorithm(base=base, **awd).run(tiny_modelpool))


@pytest.mark.parametrize("options", [{}, {"trim": 0.2}])
def test_learned_merges_start_from_the_best_single_coefficient(
    tiny_modelpool, fabric, tmp_path, options
):
    quick = {"max_samples": 24, "num_workers": 0, "guard_every": 0, "steps": 0}
    quick |= {"checkpoint_dir": None, "save_model": False}
    algorithm = AdaMergingAlgorithm(init="auto", **quick, **options)
    algorithm.fabric = fabric
    merged = algorithm.run(tiny_modelpool)
    (file,) = tmp_path.rglob("selection.json")
    found = json.loads(file.read_text())
    start = found["chosen"]["init"]
    best = max(found["candidates"], key=lambda c: (not c["dropped"], c["mean"]))
    assert len(found["candidates"]) == 14
    assert best["mean"] == max(
        c["mean"] for c in found["candidates"] if c["options"]["init"] == start
    )
    assert (algorithm.result.raw == torch.tensor(start)).all()
    given = AdaMergingAlgorithm(init=start, **quick, **options)
    assert_same(merged, given.run(tiny_modelpool))
