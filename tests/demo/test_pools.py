import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fusion_bench.method import SimpleAverageAlgorithm, TaskArithmeticAlgorithm
from fusion_bench.modelpool import CLIPVisionModelPool
from fusion_bench.taskpool import CLIPVisionModelTaskPool
from fusion_bench.tasks.clip_classification import get_classnames_and_templates
from fusion_bench.utils import import_object, instantiate
from omegaconf import OmegaConf
from transformers import CLIPModel, CLIPProcessor, CLIPVisionModel

from fusion_plugins.demo import demo_modelpool, demo_taskpool
from fusion_plugins.demo.image_build import normalise
from fusion_plugins.demo.pool_folder import read_description
from fusion_plugins.pools.clip_tasks import register_clip_task

TASKS = ["digits", "textures", "colours"]


def test_the_pool_is_upstreams_own_class_with_plain_paths(tiny_modelpool):
    assert type(tiny_modelpool) is CLIPVisionModelPool
    assert tiny_modelpool.model_names == TASKS
    paths = OmegaConf.to_container(tiny_modelpool._models)
    assert all(isinstance(path, str) for path in paths.values())
    assert isinstance(tiny_modelpool.load_pretrained_model(), CLIPVisionModel)
    assert isinstance(tiny_modelpool.load_clip_model("digits"), CLIPModel)
    assert isinstance(tiny_modelpool.load_processor(), CLIPProcessor)
    OmegaConf.to_yaml(tiny_modelpool.config)


def test_every_split_loads_and_none_overlap(tiny_modelpool):
    for name in TASKS:
        train = tiny_modelpool.load_train_dataset(name)
        val = tiny_modelpool.load_val_dataset(name)
        test = tiny_modelpool.load_test_dataset(name)
        assert (len(train), len(val), len(test)) == (540, 60, 120)
        item = test[0]
        assert set(item) == {"image", "label"}
        assert item["image"].size == (32, 32) and type(item["label"]) is int
        seen = {image.tobytes() for image in train.images}
        assert not seen & {image.tobytes() for image in val.images}


def test_experts_differ_from_the_base_in_the_vision_tower_only(tiny_modelpool):
    base = tiny_modelpool.load_clip_model("_pretrained_").state_dict()
    for name in TASKS:
        expert = tiny_modelpool.load_clip_model(name).state_dict()
        changed = {key for key in base if not torch.equal(base[key], expert[key])}
        assert changed and all(key.startswith("vision_model.") for key in changed)


def test_training_saw_the_pixels_the_processor_makes(tiny_modelpool):
    image = tiny_modelpool.load_test_dataset("colours")[0]["image"]
    processor = tiny_modelpool.load_processor()
    got = processor(images=[image], return_tensors="pt")["pixel_values"]
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    torch.testing.assert_close(got, normalise(pixels), rtol=0, atol=1e-6)


def test_upstreams_task_pool_measures_what_the_build_measured(tiny_pool_root):
    upstreams = "fusion_bench.taskpool.CLIPVisionModelTaskPool"
    taskpool = demo_taskpool(tiny_pool_root, pool_class=upstreams)
    assert type(taskpool) is CLIPVisionModelTaskPool
    built = read_description(tiny_pool_root)["accuracy"]
    pool = demo_modelpool(tiny_pool_root)
    report = taskpool.evaluate(pool.load_pretrained_model())
    for name in TASKS:
        assert report[name]["accuracy"] == pytest.approx(built["pretrained"][name])
        expert = taskpool.evaluate(pool.load_model(name))[name]["accuracy"]
        assert expert == pytest.approx(built["experts"][name])
    assert np.mean(list(built["experts"].values())) > 0.5


def test_upstreams_methods_merge_the_pool(tiny_pool_root):
    taskpool = demo_taskpool(tiny_pool_root, batch_size=64)
    for method in (SimpleAverageAlgorithm(), TaskArithmeticAlgorithm(0.3)):
        report = taskpool.evaluate(method.run(demo_modelpool(tiny_pool_root)))
        assert 0 < report["average"]["accuracy"] <= 1


def test_changed_class_names_change_the_heads(tiny_pool_root):
    taskpool = demo_taskpool(tiny_pool_root, tasks=["colours"])
    model = demo_modelpool(tiny_pool_root).load_model("colours")
    before = taskpool.evaluate(model)["colours"]["accuracy"]
    names, _ = get_classnames_and_templates("colours")
    register_clip_task("colours", [*names[1:], names[0]], ["a mosaic of {} tiles."])
    assert taskpool.evaluate(model)["colours"]["accuracy"] < before / 2
    demo_taskpool(tiny_pool_root)  # registers the pool's own names again
    assert get_classnames_and_templates("colours")[0] == names


def test_some_tasks_only(tiny_pool_root):
    pool = demo_modelpool(tiny_pool_root, tasks=["colours", "digits"])
    assert pool.model_names == ["colours", "digits"]
    assert pool.test_dataset_names == ["colours", "digits"]


@pytest.mark.parametrize("make", [demo_modelpool, demo_taskpool])
def test_wrong_arguments_say_what_is_wrong(make, tiny_pool_root, tmp_path):
    with pytest.raises(ValueError, match=r"\['cats'\].*available: \['digits'"):
        make(tiny_pool_root, tasks=["cats"])
    with pytest.raises(ValueError, match="available"):
        make(tiny_pool_root, tasks=[])
    with pytest.raises(
        ValueError, match="is not a demo pool.*fusion-plugins demo build --help"
    ):
        make(tmp_path)
    (tmp_path / "pool.json").write_text('{"format_version": 99}')
    with pytest.raises(ValueError, match="is a pool of format 99, not 1"):
        make(tmp_path)
    (tmp_path / "pool.json").write_text("{")
    with pytest.raises(ValueError, match="pool.json is damaged"):
        make(tmp_path)


def test_wrong_batch_size_and_splits_say_what_is_wrong(tiny_pool_root):
    load_dataset = import_object("fusion_plugins.demo.load_dataset")
    with pytest.raises(
        ValueError, match="batch_size is 0, expected a whole number >= 1"
    ):
        demo_taskpool(tiny_pool_root, batch_size=0)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        load_dataset(str(tiny_pool_root), "digits", "dev")
    with pytest.raises(ValueError, match=r"no task 'cats' .*'colours'"):
        load_dataset(str(tiny_pool_root), "cats")


def test_importing_the_demo_package_does_not_import_torch():
    code = "import sys, fusion_plugins.demo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("kind", ["modelpool", "taskpool"])
def test_the_configs_make_the_pools(kind, tiny_pool_root):
    file = Path(__file__).parents[2] / "config" / kind / "demo.yaml"
    config = OmegaConf.load(file)
    config.root = str(tiny_pool_root)
    made = instantiate(config)
    expected = {"modelpool": CLIPVisionModelPool, "taskpool": CLIPVisionModelTaskPool}
    assert isinstance(made, expected[kind])
