"""What a CLIP pool means to adaptation: samples, features, heads, own tasks."""

import numpy as np
import pytest
import torch
from fusion_bench.models.hf_clip import HFCLIPClassifier
from fusion_bench.tasks.clip_classification import get_classnames_and_templates
from lightning import Fabric
from omegaconf import OmegaConf

from fusion_plugins.adaptation import SampleOrder
from fusion_plugins.pools import adapter_for
from fusion_plugins.pools.tasks import DataOptions, build_tasks

CPU = torch.device("cpu")
SHAPES = {"classnames": ["round", "square"], "templates": ["a {} thing.", "one {}."]}


@pytest.fixture
def prepared(tiny_modelpool):
    adapter = adapter_for(tiny_modelpool)
    adapter.prepare(CPU)
    return adapter


def own_task_pool(modelpool, name: str, **models):
    """A pool whose one expert is a task FusionBench has never heard of."""
    config = dict(modelpool._models)
    renamed = {"_pretrained_": config["_pretrained_"], name: config["digits"]} | models
    datasets = OmegaConf.create({name: modelpool._test_datasets["digits"]})
    return type(modelpool)(
        OmegaConf.create(renamed),
        processor=config["_pretrained_"],
        test_datasets=datasets,
    )


@pytest.mark.parametrize("task", ["digits", "textures", "colours"])
def test_kept_samples_are_what_the_processor_makes(prepared, tiny_modelpool, task):
    processor = tiny_modelpool.load_processor()
    raw, dataset = tiny_modelpool.load_test_dataset(task), prepared.dataset(
        task, "test"
    )
    images = [raw[i]["image"].convert("RGB") for i in range(12)]
    want = processor(images=images, return_tensors="pt")["pixel_values"]
    stored = torch.stack([prepared.encode(dataset[i]) for i in range(12)])
    assert stored.dtype == torch.uint8 and want.std() > 0.1
    torch.testing.assert_close(prepared.decode(stored), want, rtol=0, atol=1e-6)


def test_a_sample_may_be_a_pair_and_of_another_size_and_mode(prepared, tiny_modelpool):
    image = tiny_modelpool.load_test_dataset("digits")[0]["image"]
    image = image.resize((50, 41)).convert("L")
    processor = tiny_modelpool.load_processor()
    rgb = image.convert("RGB")
    want = processor(images=[rgb], return_tensors="pt")["pixel_values"][0]
    got = prepared.decode(prepared.encode((image, 3))[None])[0]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_features_and_heads_give_upstreams_logits(prepared, tiny_modelpool):
    dataset = prepared.dataset("textures", "test")
    inputs = prepared.decode(
        torch.stack([prepared.encode(dataset[i]) for i in range(8)])
    )
    vision = tiny_modelpool.load_model("textures").eval()
    classifier = HFCLIPClassifier(
        tiny_modelpool.load_clip_model("_pretrained_"), tiny_modelpool.load_processor()
    )
    classifier.clip_model.vision_model = getattr(vision, "vision_model", vision)
    classifier.set_classification_task(*get_classnames_and_templates("textures"))
    with torch.no_grad():
        want = classifier(inputs)
        features = prepared.features(vision, inputs)
        got = prepared.heads()["textures"](features)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(8))
    want = want["logits"] if isinstance(want, dict) else want
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_heads_are_frozen_and_hold_the_temperature(prepared, tiny_modelpool):
    scale = tiny_modelpool.load_clip_model("_pretrained_").logit_scale.exp().item()
    for task, head in prepared.heads().items():
        classes = len(get_classnames_and_templates(task)[0])
        assert head.weight.shape[0] == classes and head.bias is None
        norms = head.weight.norm(dim=1)
        torch.testing.assert_close(
            norms, torch.full((classes,), scale), rtol=1e-4, atol=0
        )
        assert not head.weight.requires_grad


def test_an_own_task_by_its_description_alone(tiny_modelpool):
    pool = own_task_pool(tiny_modelpool, "own_things")
    with pytest.raises(ValueError, match=r"no class names for the task\(s\) \['own_th"):
        adapter_for(pool)
    adapter = adapter_for(pool, {"own_things": OmegaConf.create(SHAPES)})
    adapter.prepare(CPU)
    assert adapter.heads()["own_things"].weight.shape[0] == 2
    # FusionBench's task pool asks this function.
    names, templates = get_classnames_and_templates("own_things")
    assert names == ["round", "square"]
    assert [t("red") for t in templates] == ["a red thing.", "one red."]


def test_a_changed_class_name_changes_the_head(tiny_modelpool):
    pool = own_task_pool(tiny_modelpool, "renamed_things")
    heads = []
    for names in (["round", "square"], ["round", "square"], ["round", "flat"]):
        info = {"renamed_things": SHAPES | {"classnames": names}}
        adapter = adapter_for(pool, info)
        adapter.prepare(CPU)
        heads.append(adapter.heads()["renamed_things"].weight)
    assert torch.equal(heads[0], heads[1])
    assert torch.equal(heads[1][0], heads[2][0])
    assert not torch.allclose(heads[1][1], heads[2][1])


@pytest.mark.parametrize(
    "info, message",
    [
        ({"nonsense": SHAPES}, r"describes \['nonsense'\], but the pool's experts are"),
        (
            {"digits": {"classnames": ["a"]}},
            r"tasks.digits is {'classnames': \['a'\]}, exp",
        ),
        ({"digits": SHAPES | {"classnames": []}}, "list of class names is empty"),
        ({"digits": SHAPES | {"classnames": "ab"}}, "names are the single string 'ab'"),
        (
            {"digits": SHAPES | {"templates": "a {}"}},
            "the single string 'a {}'",
        ),
        ({"digits": SHAPES | {"templates": ["a"]}}, "needs exactly one '{}'"),
        ({"digits": None}, "tasks.digits is None, expected classnames"),
        ({"digits": ["a"]}, r"tasks.digits is \['a'\], expected classnames"),
        (["digits"], r"tasks is \['digits'\], expected a description for each"),
    ],
)
def test_malformed_descriptions_are_refused(tiny_modelpool, info, message):
    with pytest.raises(ValueError, match=message):
        adapter_for(tiny_modelpool, info)


def test_pools_without_data_are_refused_by_task(tiny_modelpool):
    tiny_modelpool._val_datasets = None
    adapter = adapter_for(tiny_modelpool)
    with pytest.raises(ValueError, match=r"lists no val_datasets for \['digits', 'tex"):
        adapter.check_datasets("val")
    with pytest.raises(ValueError, match="data is 'dev', expected one of"):
        adapter.check_datasets("dev")
    adapter.check_datasets("test")


def test_other_pool_classes_are_refused():
    from fusion_bench.modelpool import BaseModelPool

    pool = BaseModelPool({"_pretrained_": torch.nn.Linear(2, 2)})
    with pytest.raises(TypeError, match="does not know the pool class BaseModelPool"):
        adapter_for(pool)


def test_a_pool_without_processor_or_text_tower_is_refused(tiny_modelpool):
    base = tiny_modelpool.load_model("_pretrained_")
    tiny_modelpool._processor = None
    with pytest.raises(ValueError, match="no processor.*modelpool.processor"):
        adapter_for(tiny_modelpool).prepare(CPU)
    held = type(tiny_modelpool)(OmegaConf.create({"digits": "x"}))
    held._models = {"_pretrained_": base, "digits": base}
    with pytest.raises(ValueError, match="need the text tower.*folder or hub name"):
        adapter_for(held).prepare(CPU)


def tasks_of(modelpool, **options):
    order = SampleOrder(0, 16)
    fabric = Fabric(accelerator="cpu", devices=1)
    settings = DataOptions(workers=0, **options)
    adapter = adapter_for(modelpool)
    return build_tasks(
        adapter, order, dict.fromkeys(adapter.tasks, ()), settings, fabric
    )


@pytest.mark.parametrize(
    "options, count",
    [
        ({}, 120),
        ({"fraction": 0.25}, 30),
        ({"fraction": 0.001}, 1),
        ({"max_samples": 7}, 7),
        ({"fraction": 0.5, "max_samples": 100}, 60),
    ],
)
def test_shares_and_limits_of_samples(tiny_modelpool, options, count):
    textures = tasks_of(tiny_modelpool, **options)[1]
    assert textures.name == "textures" and textures.source.count == count
    again = tasks_of(tiny_modelpool, **options)[1].source.data.dataset._samples
    samples = textures.source.data.dataset._samples
    assert np.array_equal(samples, again) and len(set(samples)) == count


def test_an_empty_dataset_is_named(tiny_modelpool):
    tiny_modelpool._test_datasets["colours"] = []
    adapter = adapter_for(tiny_modelpool)
    adapter.dataset = lambda task, split: [] if task == "colours" else [0]
    with pytest.raises(ValueError, match="dataset of task 'colours' is empty"):
        fabric = Fabric(accelerator="cpu", devices=1)
        draws = dict.fromkeys(adapter.tasks, ())
        build_tasks(adapter, SampleOrder(0, 16), draws, DataOptions(), fabric)


def test_preparing_encodes_the_samples_a_run_visits(tiny_modelpool, monkeypatch):
    adapter, order = adapter_for(tiny_modelpool), SampleOrder(0, 16)
    encode, seen = adapter.encode, []
    adapter.encode = lambda sample: (seen.append(1), encode(sample))[1]
    draws, name = dict.fromkeys(adapter.tasks, [0, 1]), adapter.tasks[0]
    options = DataOptions(workers=0, monitored=8)
    fabric = Fabric(accelerator="cpu", devices=1)
    task = build_tasks(adapter, order, draws, options, fabric)[0]
    visited = {int(i) for d in (0, 1) for i in order.batch(name, 120, d)}
    visited |= {int(i) for i in order.subset(name, 120, 8)}
    assert set(task.source.visited) == visited
    before = len(seen)
    task.source.batch([1])
    assert len(seen) == before >= len(visited)
