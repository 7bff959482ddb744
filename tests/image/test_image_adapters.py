"""What the methods learn about image classification pools: heads, images, files."""

from copy import copy, deepcopy
from types import SimpleNamespace

import pytest
import torch
from datasets import ClassLabel
from datasets import Dataset as ArrowDataset
from omegaconf import OmegaConf
from tiny_image_pools import FAMILIES, TASKS, Images, datasets, make_pool, reference
from torch import nn
from torchvision import transforms

from fusion_plugins.modelpool.image_pools import ResNetPool
from fusion_plugins.pools import adapter_for, family_of, head_site, load_base
from fusion_plugins.pools.clip_tasks import registered_tasks
from fusion_plugins.pools.families.image_classification import load_processor
from fusion_plugins.pools.image_processing import ImageCodec
from fusion_plugins.pools.loading import load_module
from fusion_plugins.taskpool.images import ImageTaskPool

HEADS = {"resnet": "classifier", "convnext": "classifier", "dinov2": "classifier"}
HEADS |= {"torchvision": "fc"}


def logits(outputs) -> torch.Tensor:
    return outputs if isinstance(outputs, torch.Tensor) else outputs.logits


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def pool(family, tmp_path_factory):
    return make_pool(family, tmp_path_factory.mktemp(family))


@pytest.fixture
def adapter(pool):
    adapter = adapter_for(pool)
    adapter.prepare(torch.device("cpu"))
    return adapter


def test_images_are_kept_as_bytes_and_become_what_the_processor_makes(pool, adapter):
    samples = [Images("img-a")[i] for i in range(6)]
    stored = torch.stack([adapter.encode(sample) for sample in samples])
    want = reference(load_processor(pool), samples)
    assert stored.dtype == torch.uint8 and stored.shape == want.shape
    torch.testing.assert_close(adapter.decode(stored), want, rtol=0, atol=0)


def test_an_adopted_model_runs_the_weights_it_holds(family, pool):
    inputs = torch.randn(2, 3, 32, 32)
    module = load_module(pool, "img-b").eval()
    before = logits(module(inputs))
    assert before.shape == (2, TASKS["img-b"])
    copy = deepcopy(module)
    nn.init.zeros_(list(copy.get_submodule(HEADS[family]).parameters())[0])
    assert not torch.equal(logits(copy(inputs)), before)
    assert torch.equal(logits(module(inputs)), before)


def test_the_pools_own_forward_would_run_another_objects_weights(family, pool):
    if family == "torchvision":
        pytest.skip("FusionBench leaves torchvision's forward alone")
    inputs = torch.randn(2, 3, 32, 32)
    model = pool.load_model("img-b").eval()
    copy = deepcopy(model)
    nn.init.zeros_(list(copy.get_submodule(HEADS[family]).parameters())[0])
    assert torch.equal(copy(inputs), model(inputs))  # hence adopt()


def test_heads_are_the_experts_own_and_take_the_models_features(family, pool, adapter):
    heads = adapter.heads()
    assert (
        list(heads) == list(TASKS) and head_site(pool, load_base(pool)) == HEADS[family]
    )
    inputs = torch.randn(2, 3, 32, 32)
    for task, classes in TASKS.items():
        expert = load_module(pool, task).eval()
        got = heads[task](adapter.features(expert, inputs))
        assert got.shape == (2, classes)
        assert torch.equal(got, logits(expert(inputs)))
        assert not any(p.requires_grad for p in heads[task].parameters())


def test_transformers_folders_are_read_in_place(family, pool):
    found = family_of(pool).files(pool, "img-a")
    assert (found is None) == (family == "torchvision")
    assert family_of(pool).files(pool, "_pretrained_") is None  # described by a mapping


def test_a_subclass_of_the_pool_is_loaded_whole(family, pool):
    class Own(type(pool)):
        pass

    own = deepcopy(pool)
    own.__class__ = Own
    assert family_of(own).files(own, "img-a") is None


def test_the_processor_is_found_when_the_base_is_a_bare_name(tmp_path):
    pool = make_pool("convnext", tmp_path)
    want = type(pool.load_processor())
    pool._models["_pretrained_"] = pool._models["_pretrained_"]["config_path"]
    assert type(load_processor(pool)) is want
    assert load_base(pool) is not None


def test_experts_that_would_get_a_random_head_are_refused(tmp_path):
    pool = make_pool("resnet", tmp_path)
    described = {"config_path": pool._models["img-a"], "dataset_name": "img-a"}
    pool._models["img-a"] = OmegaConf.create(described)
    adapter = adapter_for(pool)
    adapter.prepare(torch.device("cpu"))
    with pytest.raises(
        ValueError, match="'img-a' has dataset_name=img-a.*folder or hub"
    ):
        adapter.heads()


def test_own_tasks_are_described_by_their_class_names(tmp_path):
    from fusion_bench.tasks.clip_classification import get_num_classes

    pool = make_pool("resnet", tmp_path)
    adapter_for(pool, {"img-c": {"classnames": list("abcde")}})
    assert get_num_classes("img-c") == 5
    with pytest.raises(
        ValueError, match=r"tasks.img-c is \['a'\], expected .*classnames"
    ):
        adapter_for(pool, {"img-c": ["a"]})


def test_heads_of_another_number_of_classes_are_refused(pool, family):
    tasks = {"img-a": {"classnames": ["one", "two"]}}
    options = {"processor": None, "dataloader_kwargs": {}}
    taskpool = ImageTaskPool({"img-a": None}, tasks=tasks, **options)
    taskpool._program = SimpleNamespace(modelpool=pool)
    message = "Task 'img-a' has 2 classes by its {}, but the head of its expert has 3"
    with registered_tasks():
        with pytest.raises(ValueError, match=message.format("class names")):
            taskpool.check_samples()
        with pytest.raises(ValueError, match=message.format("class names")):
            adapter_for(pool, tasks).check_datasets("test")
    labels = ClassLabel(names=["one", "two"])
    rows = [{"image": Images("img-a")[0]["image"], "label": 0}]
    listed = {**pool._test_datasets, "img-a": ArrowDataset.from_list(rows)}
    listed["img-a"] = listed["img-a"].cast_column("label", labels)
    other = copy(pool)
    other._test_datasets = listed
    with pytest.raises(ValueError, match=message.format("data set")):
        adapter_for(other).check_datasets("test")
    adapter_for(pool).check_datasets("test")


def test_a_missing_checkpoint_is_named(tmp_path):
    path = tmp_path / "lost.safetensors"
    model = {"model_name": "tiny_resnet", "num_classes": 3, "checkpoint": str(path)}
    pool = ResNetPool(OmegaConf.create({"a": model}), type="torchvision")
    with pytest.raises(ValueError, match=f"there is no file {path}"):
        pool.load_model("a")


def test_torchvision_checkpoints_may_be_saved_by_torch(tmp_path):
    pool = make_pool("torchvision", tmp_path)
    want = pool.load_model("img-a")
    pool.save_model(want, str(tmp_path / "saved.pth"))
    pool._models["img-a"]["checkpoint"] = str(tmp_path / "saved.pth")
    got = pool.load_model("img-a")
    assert torch.equal(got.fc.weight, want.fc.weight)


def test_the_pools_own_torchvision_transform_is_kept_as_bytes():
    pool = ResNetPool(
        OmegaConf.create({}), type="torchvision", test_datasets=datasets()
    )
    codec = ImageCodec(pool.load_processor())
    samples = [Images("img-b")[i] for i in range(2)]
    stored = torch.stack([codec.encode(sample["image"]) for sample in samples])
    assert stored.dtype == torch.uint8 and stored.shape == (2, 3, 224, 224)
    want = reference(pool.load_processor(), samples)
    torch.testing.assert_close(codec.decode(stored), want, rtol=0, atol=0)


@pytest.mark.parametrize(
    "steps",
    [
        [transforms.ToTensor(), transforms.Resize(20)],
        [transforms.Resize((20, 20)), transforms.ToTensor(), transforms.Grayscale(3)],
        [transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float32)],
    ],
)
def test_other_preprocessing_is_kept_as_it_comes(steps):
    compose = transforms.Compose(steps)
    codec = ImageCodec(compose)
    image = Images("img-a")[3]["image"]
    assert not codec.compact
    got = codec.decode(codec.encode(image)[None])[0]
    assert got.dtype == torch.float32 and torch.equal(
        got, compose(image.convert("RGB"))
    )
