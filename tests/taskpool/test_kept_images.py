"""Test images that are kept resized: the same results, and nothing read again."""

import copy
import pickle
import tempfile
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset as ArrowDataset
from datasets import Image as ImageFeature
from fusion_bench.dataset.image_dataset import ImageClassificationDataset
from fusion_bench.models.hf_clip import HFCLIPClassifier
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from transformers import CLIPImageProcessor

from fusion_plugins.demo import demo_modelpool, demo_taskpool
from fusion_plugins.pools import adapter_for, clip_tasks, kept_images
from fusion_plugins.pools.clip_tasks import PromptTemplate
from fusion_plugins.pools.image_processing import ImageCodec, labelled_images
from fusion_plugins.pools.kept_images import EncodedImages
from fusion_plugins.pools.samples import Samples, stored_contents
from fusion_plugins.taskpool.kept import KeptTestSet


def photos(count: int = 6) -> list[dict]:
    """Of different sizes, larger than what a model sees."""
    draw = np.random.default_rng(0)
    sizes = draw.integers(40, 90, (count, 2))
    pixels = [draw.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]
    images = map(Image.fromarray, pixels)
    return [{"image": image, "label": n % 2} for n, image in enumerate(images)]


def clip_processor(edge: int = 32, crop: int = 32) -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": edge}, crop_size=crop)


def inputs(samples, processor=None, workers: int = 0) -> list[torch.Tensor]:
    """What FusionBench's data set makes of them."""
    prepared = ImageClassificationDataset(samples, processor)
    loader = DataLoader(prepared, batch_size=2, num_workers=workers)
    return [part for batch in loader for part in batch]


@pytest.fixture(autouse=True)
def rooms(monkeypatch) -> dict:
    """No test finds what another one has kept."""
    monkeypatch.setattr(kept_images, "_ROOMS", {})
    return kept_images._ROOMS


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """Which samples were read."""
    read, found = Samples.__getitem__, []

    def noted(self, index):
        found.append(index)
        return read(self, index)

    monkeypatch.setattr(Samples, "__getitem__", noted)
    return found


@pytest.mark.parametrize("listed", [True, False], ids=["labels known", "unknown"])
@pytest.mark.parametrize("workers", [0, 2])
def test_kept_images_are_prepared_to_the_same_numbers(workers, listed, reads):
    samples, processor = labelled_images("task", photos(), 2), clip_processor()
    want = inputs(samples, processor)
    if not listed:
        samples.labels = ()
    images = KeptTestSet(samples, ImageCodec(processor))
    for _ in range(3):
        images.keep(make=True)
        assert all(map(torch.equal, inputs(images, workers=workers), want))
        del reads[:]
    assert all(map(torch.equal, inputs(images), want))
    assert reads == []  # workers have filled the same file


@pytest.mark.parametrize("case", ["no room", "no place", "limit", "pickled", "damaged"])
def test_otherwise_samples_are_read_again(case, reads, monkeypatch):
    processor = clip_processor()
    if case == "no room":
        usage = SimpleNamespace(free=1000)
        monkeypatch.setattr(kept_images.shutil, "disk_usage", lambda path: usage)
    if case == "no place":
        monkeypatch.setattr(tempfile, "tempdir", "/no such folder")
    if case == "limit":
        monkeypatch.setattr(kept_images, "LIMIT", 100)
    samples = labelled_images("task", photos(), 2)
    want = inputs(samples, processor)
    images = KeptTestSet(samples, ImageCodec(processor))
    images.keep(make=True)
    assert all(map(torch.equal, inputs(images), want))
    if case == "pickled":
        assert ForkingPickler.dumps(images)  # for a process that is no fork
        images = pickle.loads(pickle.dumps(images))  # noqa: S301
    if case == "damaged":
        images._room._images[:, 0, 0, 0] ^= 1
    del reads[:]
    assert all(map(torch.equal, inputs(images), want))
    assert reads == list(range(len(samples)))


@pytest.mark.parametrize("change", [0, 1])
def test_a_method_and_a_task_pool_read_equal_images_once(change, reads, rooms):
    processor = clip_processor()
    codec = ImageCodec(processor)
    learned = EncodedImages("task", photos(), lambda s: codec.encode(s["image"]))
    learned.keep(codec.name, codec.shape)
    want = [codec.decode(learned[index][None])[0] for index in range(len(learned))]
    others = photos()
    red, *rest = others[0]["image"].getpixel((0, 0))
    others[0]["image"].putpixel((0, 0), (red ^ change, *rest))
    samples = labelled_images("other", others, 2)
    images = KeptTestSet(samples, ImageCodec(processor))
    images.keep(make=False)
    del reads[:]
    got = [images[index]["image"] for index in range(len(images))]
    assert all(map(torch.equal, got[1:], want[1:])) and len(rooms) == 1
    assert reads == list(range(len(images))) * change


def test_a_folder_keeps_images_for_the_next_run(
    tmp_path, tiny_pool_root, monkeypatch, reads, rooms
):
    monkeypatch.setenv(kept_images.FOLDER, str(tmp_path / "images"))
    samples, codec = labelled_images("task", photos(), 2), ImageCodec(clip_processor())
    want = inputs(samples, clip_processor())
    for run in range(2):
        rooms.clear()
        images = KeptTestSet(samples, codec)
        images.keep(make=False)
        del reads[:]
        assert all(map(torch.equal, inputs(images), want))
        assert (reads == []) == (run == 1)
    (file,) = (tmp_path / "images").iterdir()
    assert file.suffix == ".images"
    size = file.stat().st_size
    file.write_bytes(b"cut off")
    rooms.clear()
    KeptTestSet(samples, codec).keep(make=False)
    assert [f.stat().st_size for f in (tmp_path / "images").iterdir()] == [size]
    monkeypatch.setenv(kept_images.FOLDER, str(file))
    with pytest.raises(
        ValueError, match="^FUSION_PLUGINS_IMAGES: .* expected a folder"
    ):
        demo_taskpool(tiny_pool_root).check_samples()
    with pytest.raises(
        ValueError, match="^FUSION_PLUGINS_IMAGES: .* expected a folder"
    ):
        adapter_for(demo_modelpool(tiny_pool_root)).check_datasets("test")


@pytest.mark.parametrize(
    "one, other",
    [
        (clip_processor(32), clip_processor(40)),
        (clip_processor(32), clip_processor(32, 24)),
        (
            transforms.Compose([transforms.Resize(20), transforms.ToTensor()]),
            transforms.Compose([transforms.Resize(21), transforms.ToTensor()]),
        ),
    ],
)
def test_codecs_of_other_results_have_other_names(one, other):
    assert ImageCodec(one).name == ImageCodec(copy.deepcopy(one)).name
    assert ImageCodec(one).name != ImageCodec(other).name


def test_images_with_a_transform_of_their_own_are_not_shared():
    raw = ArrowDataset.from_list([{"x": 1}, {"x": 2}])
    assert stored_contents(raw) is not None
    assert stored_contents(raw.with_transform(lambda rows: rows)) is None
    images = ArrowDataset.from_dict({"image": [p["image"] for p in photos()]})
    grey = images.cast_column("image", ImageFeature(mode="L"))
    assert stored_contents(images) != stored_contents(grey)


def test_a_task_pool_keeps_images_from_its_second_evaluation_on(tiny_pool_root, reads):
    pool = demo_taskpool(tiny_pool_root)
    model = demo_modelpool(tiny_pool_root).load_model("digits").eval()
    reports, counts, texts = [], [], []
    for _ in range(3):
        del reads[:]
        reports.append(pool.evaluate(model))
        counts.append(len(reads))
        if len(reports) == 1:  # class names are read once, too
            text_model = pool.clip_model.text_model
            text_model.register_forward_hook(lambda *_: texts.append(1))
    assert texts == []
    assert reports[0] == reports[1] == reports[2]
    assert counts[1] >= sum(map(len, pool.test_datasets.values())) and counts[2] == 0


@pytest.mark.parametrize("part", [None, "text_model", "text_projection", "config"])
def test_text_towers_read_class_names_once_if_they_are_equal(
    part, tiny_pool_root, monkeypatch
):
    monkeypatch.setattr(clip_tasks, "_HEADS", {})
    calls, compute = [], HFCLIPClassifier.set_classification_task

    def counted(self, names, templates):
        calls.append(names)
        compute(self, names, templates)

    monkeypatch.setattr(HFCLIPClassifier, "set_classification_task", counted)
    asked = (["cat", "dog"], [PromptTemplate("a {}."), PromptTemplate("the {}.")])
    clip = demo_modelpool(tiny_pool_root).load_clip_model("_pretrained_")
    processor = demo_modelpool(tiny_pool_root).load_processor()
    for changed in (None, part):
        model = copy.deepcopy(clip)
        if changed == "config":  # as of a checkpoint that another program converted
            model.config.text_config.hidden_act = "gelu"
        elif changed:
            next(getattr(model, changed).parameters()).data.mul_(-1)
        classifier = HFCLIPClassifier(model, processor)
        found = clip_tasks.TextHeads(classifier)(*asked)
        compute(classifier, *asked)
        assert torch.equal(found, classifier.zeroshot_weights)
    assert len(calls) == (2 if part else 1)
