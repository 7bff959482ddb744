"""Test images that are kept resized: the same results, and nothing read again."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fusion_bench.dataset.image_dataset import ImageClassificationDataset
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessor

from fusion_plugins.demo import demo_modelpool, demo_taskpool
from fusion_plugins.pools.image_processing import labelled_images
from fusion_plugins.pools.samples import Samples
from fusion_plugins.taskpool import kept
from fusion_plugins.taskpool.kept import KeptImages


def photos(count: int = 6) -> list[dict]:
    """Of different sizes, larger than what a model sees."""
    draw = np.random.default_rng(0)
    sizes = draw.integers(40, 90, (count, 2))
    pixels = [draw.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]
    images = map(Image.fromarray, pixels)
    return [{"image": image, "label": n % 2} for n, image in enumerate(images)]


def clip_processor(edge: int = 32, crop: int = 32) -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": edge}, crop_size=crop)


def inputs(samples, processor, workers: int = 0) -> list[torch.Tensor]:
    prepared = ImageClassificationDataset(samples, processor)
    loader = DataLoader(prepared, batch_size=2, num_workers=workers)
    return [part for batch in loader for part in batch]


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """Which samples were read."""
    read, found = Samples.__getitem__, []

    def noted(self, index):
        found.append(index)
        return read(self, index)

    monkeypatch.setattr(Samples, "__getitem__", noted)
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_kept_images_are_prepared_to_the_same_numbers(workers, reads):
    samples, processor = labelled_images("task", photos(), 2), clip_processor()
    want = inputs(samples, processor)
    images = KeptImages(samples, processor)
    for _ in range(3):
        got = inputs(images, processor, workers)
        assert all(map(torch.equal, got, want))
        del reads[:]
    assert all(map(torch.equal, inputs(images, processor), want))
    assert reads == []  # workers have filled the same file


@pytest.mark.parametrize(
    "case", ["other crop", "no room", "limit", "function", "pickled"]
)
def test_otherwise_samples_are_read_again(case, reads, monkeypatch):
    processor = clip_processor(40 if case == "other crop" else 32)
    if case == "function":
        processor = lambda image: torch.ones(3)  # noqa: E731
    if case == "no room":
        usage = SimpleNamespace(free=1000)
        monkeypatch.setattr(kept.shutil, "disk_usage", lambda path: usage)
    samples = labelled_images("task", photos(), 2)
    want = inputs(samples, processor)
    images = KeptImages(samples, processor, room=100 if case == "limit" else 2**20)
    assert all(map(torch.equal, inputs(images, processor), want))
    if case == "pickled":
        images = copy.copy(images)  # by what pickle would take
    del reads[:]
    assert all(map(torch.equal, inputs(images, processor), want))
    assert reads == list(range(len(samples)))


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
