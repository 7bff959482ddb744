"""Samples of other people's data sets: what is understood, and what is refused, and how."""

import io
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from fusion_plugins.pools.image_processing import as_rgb, labelled_images
from fusion_plugins.pools.labels import check_class_order
from fusion_plugins.pools.samples import Samples, stored_contents

GREYS = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
NAMES = ["cat", "dog", "cow"]


def saved(image: Image.Image, kind: str = "png") -> Image.Image:
    """As it is read from a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return Image.open(io.BytesIO(buffer.getvalue()))


def older_pillow(image: Image.Image) -> Image.Image:
    """A 16-bit file as releases before 10.3 opened it."""
    image = image.convert("I")
    image.format = "PNG"
    return image


# -- pictures -------------------------------------------------------------------------

DEEP = Image.fromarray(GREYS.astype(np.uint16) * 257)
WITH_ALPHA = np.dstack([COLOURS, np.full((16, 16), 90, np.uint8)])
PALETTE = Image.fromarray(COLOURS).quantize(64)
GREY = np.dstack([GREYS] * 3)


@pytest.mark.parametrize(
    ("image", "want"),
    [
        (Image.fromarray(GREYS), GREY),
        (saved(DEEP), GREY),
        (saved(DEEP, "tiff"), GREY),
        (older_pillow(DEEP), GREY),
        (Image.fromarray(GREYS.astype(">u2") * 257), GREY),
        (Image.merge("LA", [Image.fromarray(GREYS)] * 2), GREY),
        (Image.fromarray(GREYS > 99), (GREY > 99) * np.uint8(255)),
        (saved(Image.fromarray(WITH_ALPHA)), COLOURS),
        (saved(PALETTE), np.asarray(PALETTE.convert("RGB"))),
        (saved(Image.fromarray(COLOURS)), COLOURS),
    ],
    ids=["L", "I;16 png", "I;16 tiff", "I", "I;16B", "LA", "1", "RGBA", "P", "RGB"],
)
def test_a_picture_is_the_same_one_in_every_mode(image, want):
    got = as_rgb(image)
    assert got.mode == "RGB" and np.array_equal(np.asarray(got), want)


def test_printers_colours_are_those_of_pillow():
    image = Image.fromarray(COLOURS).convert("CMYK")
    assert as_rgb(image).tobytes() == image.convert("RGB").tobytes()


def test_transparent_palettes_give_no_warning(recwarn):
    image = saved(PALETTE.copy())
    image.info["transparency"] = bytes(range(64))
    assert np.array_equal(np.asarray(as_rgb(image)), np.asarray(PALETTE.convert("RGB")))
    assert not recwarn


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            Image.fromarray(GREYS.astype(np.int32)),
            "mode I, .*Save it with 8 or 16 bits",
        ),
        (Image.fromarray(GREYS.astype(np.float32)), "mode F, so that its brightest"),
        (torch.zeros(3, 4, 4), "is a Tensor, expected an image of pillow, not prepr"),
        ({"bytes": b"", "path": "a.png"}, r"is a dict, .*datasets\.Image\(\)"),
        ("a.png", "is a str, expected an image of pillow"),
    ],
)
def test_pictures_of_unknown_meaning_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        labelled_images("pets", [{"image": image, "label": 0}], NAMES)


# -- columns --------------------------------------------------------------------------

PICTURE = Image.fromarray(COLOURS)


@pytest.mark.parametrize(
    "sample",
    [
        {"image": PICTURE, "label": 2},
        {"img": PICTURE, "labels": 2},
        {"pixel_values": PICTURE, "fine_label": np.int64(2)},
        {"image": PICTURE, "pixel_values": None, "coarse_label": torch.tensor(2)},
        {"image": PICTURE, "label": 2, "fine_label": 7},
        (PICTURE, 2),
        [PICTURE, 2, "a note"],
    ],
)
def test_usual_columns_are_understood(sample):
    (got,) = labelled_images("pets", [sample], NAMES)
    assert got["label"] == 2 and type(got["label"]) is int
    assert np.array_equal(np.asarray(got["image"]), COLOURS)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"photo": PICTURE, "label": 0}, r"no image, only the columns \['label', 'pho"),
        ({"image": PICTURE}, r"no label, only the columns \['image'\]. Rename one to"),
        (
            {"img": PICTURE, "pixel_values": PICTURE, "label": 0},
            r"several columns could be its image: \['img', 'pixel_values'\]. Rename one",
        ),
        (
            {"image": PICTURE, "fine_label": 0, "coarse_label": 0},
            r"could be its label: \['fine_label', 'coarse_label'\]. Rename one to 'label'",
        ),
        (
            (PICTURE,),
            "it is a tuple of 1, expected a dict with the column 'label' or a",
        ),
        (PICTURE, "it is a Image, expected a dict"),
        (
            {"image": PICTURE, "label": "cat"},
            "label is 'cat', expected a class number, 0",
        ),
        (
            {"image": PICTURE, "label": 0.5},
            "label is 0.5, .* datasets' class_encode_col",
        ),
        ({"image": PICTURE, "label": None}, "label is None, expected a class number"),
        (
            {"image": PICTURE, "label": -1},
            "label is -1, .* 0 to 2. Hidden labels. Use a",
        ),
        (
            {"image": PICTURE, "label": 3},
            "label is 3, .* classes 0 to 2. Correct the la",
        ),
    ],
)
def test_other_samples_are_refused_by_task_and_index(sample, message):
    rows = [{"image": PICTURE, "label": 0}] * 2 + [sample]
    with pytest.raises(
        ValueError, match=f"^Task 'pets', sample 2: .*{message}"
    ) as error:
        labelled_images("pets", rows, NAMES)
    assert "\n" not in str(error.value)


def arrow(labels, feature=None, column: str = "label") -> datasets.Dataset:
    rows = {"image": [PICTURE] * len(labels), column: labels}
    features = {"image": datasets.Image(), column: feature or datasets.Value("int64")}
    return datasets.Dataset.from_dict(rows, datasets.Features(features))


def test_every_label_of_a_column_is_checked_without_reading_a_picture(monkeypatch):
    read = []
    monkeypatch.setattr(
        "fusion_plugins.pools.image_processing.as_rgb",
        lambda image: (read.append(1), image)[1],
    )
    with pytest.raises(ValueError, match="^Task 'pets', sample 77: its label is 9"):
        labelled_images("pets", arrow([0] * 77 + [9] + [1] * 20), NAMES)
    assert 0 < len(read) <= 8
    shuffled = arrow([9] + [0] * 20).select(range(20, -1, -1))
    with pytest.raises(ValueError, match="^Task 'pets', sample 20: its label is 9"):
        labelled_images("pets", shuffled, NAMES)
    with pytest.raises(ValueError, match="sample 0: its label is 'cat', expected a cl"):
        labelled_images("pets", arrow(["cat"], datasets.Value("string")), NAMES)


def test_of_two_label_columns_the_one_with_so_many_classes_is_taken():
    both = arrow([2, 1], datasets.ClassLabel(names=NAMES), "fine_label")
    both = both.add_column("coarse_label", [0, 1])
    coarse = datasets.ClassLabel(names=["pet", "cattle"])
    both = both.cast_column("coarse_label", coarse)
    assert [s["label"] for s in labelled_images("pets", both, NAMES)] == [2, 1]
    assert [s["label"] for s in labelled_images("pets", both, 2)] == [0, 1]
    with pytest.raises(
        ValueError, match=r"its label: \['fine_label', 'coarse_label'\]"
    ):
        labelled_images("pets", both, 5)


# -- class order ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        arrow([0], datasets.ClassLabel(names=["Cat", "cow", "dog"])),
        SimpleNamespace(class_names=["cat", "cow", "dog"]),
        SimpleNamespace(classes=("cat", "Cow", "dog")),
        SimpleNamespace(classes=["cat", "ox", "dog"]),
    ],
)
def test_another_order_of_classes_is_refused(raw):
    message = (
        "^Task 'pets': class 1 is 'dog' by its class names, but class 2 by its data"
    )
    with pytest.raises(ValueError, match=message):
        check_class_order("pets", raw, NAMES)


@pytest.mark.parametrize(
    "names",
    [
        ["Cat", "DOG", "the_cow"],
        ["felis", "canis", "bos"],
        ["cat", "cat", "dog"],  # a name that occurs twice says nothing
        ["cat", "dog", "cow", "horse"],
    ],
)
def test_other_names_say_nothing_of_the_order(names):
    ours = ["cat", "cat", "dog"] if names.count("cat") == 2 else NAMES
    check_class_order("pets", SimpleNamespace(classes=names), ours)


def test_one_of_many_names_in_another_place_may_mean_another_class():
    ours = [f"class {i}" for i in range(20)]
    theirs = [*ours[:10], "another", ours[3], *ours[12:]]
    theirs[3] = "third"
    check_class_order("pets", SimpleNamespace(classes=theirs), ours)
    theirs[3] = ours[11]  # two have changed places
    with pytest.raises(ValueError, match="class 3 is 'class 3' .* but class 11 by its"):
        check_class_order("pets", SimpleNamespace(classes=theirs), ours)


# -- data sets ------------------------------------------------------------------------


class Unsized:
    def __getitem__(self, index):
        return PICTURE, 0


class Streamed(IterableDataset):
    def __len__(self):
        return 3

    def __iter__(self):
        return iter([(PICTURE, 0)] * 3)


def whole(sample):
    return sample


SPLITS = datasets.DatasetDict(train=arrow([0]), test=arrow([0]))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (Unsized(), r"is a Unsized, expected something with len\(\) and \[index\]"),
        (Streamed(), "is a Streamed, .* load it without streaming"),
        (
            arrow([0]).to_iterable_dataset(),
            "is a IterableDataset, .* give a list of sam",
        ),
        (SPLITS, r"is a DatasetDict of \['train', 'test'\], .*Choose one split"),
        ("mnist", "is a str, expected something"),
        (None, "is a NoneType, expected something"),
    ],
)
def test_data_sets_without_order_are_refused_by_task(raw, message):
    with pytest.raises(ValueError, match=f"^Task 'pets': its data set {message}"):
        Samples("pets", raw, whole)


class Broken:
    """Files of which one cannot be read."""

    def __len__(self):
        return 400

    def __getitem__(self, index):
        if index != 390:
            return torch.zeros(2)
        Image.open(io.BytesIO(b"no picture\nat all"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_is_named_by_task_and_index_also_by_workers(workers):
    samples = Samples("pets", Broken(), whole)
    samples.check()
    batches = iter(DataLoader(samples, batch_size=100, num_workers=workers))
    with pytest.raises(ValueError) as error:
        list(batches)
    if workers:  # the collector of garbage would wait five seconds for the worker
        batches._shutdown_workers()
    text = str(error.value)
    assert text.startswith("Task 'pets', sample 390: it cannot be read (Unidentified")
    assert text.endswith("Repair it or leave it out.") and "\n" not in text


def test_a_cut_off_picture_is_named():
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).resize((90, 90)).save(buffer, "png")
    cut = Image.open(io.BytesIO(buffer.getvalue()[:2000]))
    rows = [{"image": PICTURE, "label": 0}, {"image": cut, "label": 0}]
    with pytest.raises(
        ValueError, match=r"sample 1: it cannot be read \(OSError: .*trun"
    ):
        labelled_images("pets", rows, NAMES)


def test_the_end_of_samples_ends_a_loop():
    assert list(Samples("pets", [3, 4], whole)) == [3, 4]
    with pytest.raises(ValueError, match="dataset of task 'pets' is empty. Check its"):
        Samples("pets", [], whole).check()
    seen = []
    Samples("pets", range(1000), seen.append).check()
    again = []
    Samples("pets", range(1000), again.append).check()
    assert seen == again and seen[:2] == [0, 1] and 2 < len(seen) <= 8


# -- what is stored, without reading it -----------------------------------------------


def in_files(folder, images) -> datasets.Dataset:
    """As `imagefolder` keeps them: by their paths."""
    paths = [str(folder / f"{number}.png") for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        Image.fromarray(image).save(path)
    rows = {"image": paths, "label": [0] * len(paths)}
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


def in_bytes(folder, images) -> datasets.Dataset:
    rows = {"image": [Image.fromarray(image) for image in images]}
    return datasets.Dataset.from_dict(rows)


KEPT = {
    "files": in_files,
    "bytes": in_bytes,
    "pictures": lambda folder, images: [(Image.fromarray(i), 0) for i in images],
    "tensors": lambda folder, images: TensorDataset(torch.tensor(images)),
    "a part": lambda folder, images: Subset(in_bytes(folder, images), [3, 1, 39]),
    "chosen rows": lambda folder, images: in_bytes(folder, images).select([3, 1, 39]),
}


@pytest.mark.parametrize("keep", KEPT.values(), ids=KEPT)
def test_every_stored_sample_counts(tmp_path, keep):
    images = np.random.default_rng(1).integers(0, 256, (40, 4, 4, 3)).astype(np.uint8)
    first = stored_contents(keep(tmp_path, images))
    assert first is not None and first == stored_contents(keep(tmp_path, images))
    images[39, 0, 0, 0] += 1
    assert stored_contents(keep(tmp_path, images)) != first


def test_what_only_reading_tells_has_no_name():
    assert stored_contents(Broken()) is None
    assert stored_contents([object()]) is None
