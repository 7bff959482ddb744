"""Own tasks of image task pools, and test sets that are checked before use."""

import itertools
import logging
from pathlib import Path
from types import SimpleNamespace

import datasets
import fusion_bench
import numpy as np
import pytest
import torch
from fusion_bench import BaseModelPool
from fusion_bench.mixins import CLIPClassificationMixin
from fusion_bench.tasks.clip_classification import (
    CLIPTemplateFactory,
    get_classnames_and_templates,
)
from fusion_bench.utils import instantiate
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification

from fusion_plugins import AdaMergingAlgorithm, AWDAlgorithm
from fusion_plugins.demo import demo_modelpool
from fusion_plugins.pools import adapter_for
from fusion_plugins.pools.clip_tasks import register_clip_task, registered_tasks
from fusion_plugins.taskpool import CLIPTaskPool
from fusion_plugins.taskpool.images import ImageTaskPool

SHAPES = {"classnames": ["round", "square"], "templates": ["a {} thing.", "one {}."]}
QUIET = {"save_model": False, "checkpoint_dir": None, "num_workers": 0, "steps": 1}


def known() -> dict:
    return dict(CLIPTemplateFactory._dataset_mapping)


@pytest.fixture(autouse=True)
def _restored():
    with registered_tasks():
        yield


@pytest.fixture(scope="module")
def digits(tiny_pool_root) -> list[dict]:
    data = demo_modelpool(tiny_pool_root).load_test_dataset("digits")
    return [data[i] for i in range(40)]


@pytest.fixture(scope="module")
def described(tiny_pool_root) -> dict:
    """The digits' class names and templates, as a user would write them."""
    demo_modelpool(tiny_pool_root)
    names, templates = get_classnames_and_templates("digits")
    return {"classnames": list(names), "templates": [t.text for t in templates]}


@pytest.fixture
def make(tiny_pool_root):
    def taskpool(test_datasets, **options) -> CLIPTaskPool:
        base = str(tiny_pool_root / "pretrained")
        loader = {"batch_size": 20, "num_workers": 0}
        options = {"clip_model": base, "dataloader_kwargs": loader} | options
        return CLIPTaskPool(test_datasets, processor=base, **options)

    return taskpool


def test_own_tasks_are_evaluated_after_a_data_free_merge(
    make, digits, described, tiny_modelpool
):
    merged = AWDAlgorithm(iterations=2).run(tiny_modelpool)
    want = make({"digits": digits}).evaluate(merged)["digits"]
    before = known()
    taskpool = make(
        {"my_digits": digits}, tasks=OmegaConf.create({"my_digits": described})
    )
    for _ in range(2):
        assert taskpool.evaluate(merged)["my_digits"] == want
        assert known() == before
    assert taskpool.config.tasks.my_digits.classnames == described["classnames"]


def test_changed_names_change_an_evaluation_and_no_other(
    make, digits, described, tiny_modelpool
):
    model = tiny_modelpool.load_model("digits")
    want = make({"digits": digits}).evaluate(model)["digits"]
    names = described["classnames"]
    turned = described | {"classnames": [*names[1:], names[0]]}
    other = make({"digits": digits}, tasks={"digits": turned}).evaluate(model)["digits"]
    assert other["accuracy"] < want["accuracy"] / 2
    assert make({"digits": digits}).evaluate(model)["digits"] == want


def test_what_was_registered_is_undone_also_after_an_error():
    before = known()
    with pytest.raises(OSError, match="stop"), registered_tasks({"mnist": SHAPES}):
        register_clip_task("shapes", *SHAPES.values())
        assert get_classnames_and_templates("mnist")[0] == ["round", "square"]
        raise OSError("stop")
    assert known() == before and "shapes" not in before


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (
            {"a": {"classnames": ["x"]}},
            "tasks.a is .* expected classnames .* and templ",
        ),
        ({"a": SHAPES | {"classnames": []}}, "'a': the list of class names is empty"),
        ({"a": SHAPES | {"templates": ["x"]}}, "needs exactly one '{}'"),
    ],
)
def test_descriptions_are_checked_when_the_task_pool_is_made(make, tasks, message):
    before = known()
    with pytest.raises(ValueError, match=message):
        make({}, tasks=tasks)
    assert known() == before


def test_a_misspelt_option_and_an_unknown_task_say_what_to_do(make, digits):
    with pytest.raises(TypeError, match="CLIPTaskPool has no option 'task'.*'tasks'"):
        make({"mine": digits}, task={"mine": SHAPES})
    with pytest.raises(
        ValueError, match=r"for the task\(s\) \['mine'\].*taskpool.tasks="
    ):
        make({"mine": digits}).check_samples()


CONFIGS = sorted(
    (Path(__file__).parents[2] / "config/taskpool").glob("clip-vit-*.yaml")
)


@pytest.mark.parametrize("name", [path.stem for path in CONFIGS])
def test_shipped_task_pools_have_known_options(name):
    site = Path(fusion_bench.__file__).parents[1]
    folders = (site / "fusion_bench_config", site / "config")
    folder = next(path for path in folders if path.is_dir())
    with initialize_config_dir(str(folder), version_base=None):
        config = compose("fabric_model_fusion", overrides=[f"taskpool={name}"])
    taskpool = instantiate(config.taskpool, _recursive_=False)
    assert type(taskpool) is CLIPTaskPool and len(taskpool._test_datasets) >= 8


def test_class_names_that_repeat_give_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        register_clip_task("birds", ["crane", "kite", "crane"], ["a {}."])
    assert "Task 'birds': class names repeat: ['crane']" in caplog.text
    assert get_classnames_and_templates("birds")[0] == ["crane", "kite", "crane"]


# -- test sets ------------------------------------------------------------------------


def test_pictures_of_16_bits_have_the_numbers_of_8(make, digits, tiny_modelpool):
    grey = [row["image"].convert("L") for row in digits]
    deep = [Image.fromarray(np.asarray(i).astype(np.uint16) * 257) for i in grey]
    reports = []
    for images in (grey, deep):
        rows = [r | {"image": i} for r, i in zip(digits, images, strict=True)]
        model = tiny_modelpool.load_model("digits")
        reports.append(make({"digits": rows}).evaluate(model)["digits"])
    assert reports[0] == reports[1]


def test_other_columns_have_the_same_numbers(make, digits, tiny_modelpool):
    model = tiny_modelpool.load_model("digits")
    renamed = [{"img": row["image"], "labels": row["label"]} for row in digits]
    pairs = [tuple(row.values()) for row in digits]
    want = make({"digits": digits}).evaluate(model)["digits"]
    for rows in (renamed, pairs):
        assert make({"digits": rows}).evaluate(model)["digits"] == want


BAD = {
    "string": (
        "label",
        "seven",
        "sample 11: its label is 'seven', expected a class num",
    ),
    "hidden": ("label", -1, "sample 11: its label is -1, .*Hidden labels"),
    "past": ("label", 10, "sample 11: its label is 10, .*the classes 0 to 9"),
}


@pytest.fixture(params=BAD)
def bad(request, digits):
    column, value, message = BAD[request.param]
    rows = [dict(row) for row in digits]
    rows[11][column] = value
    return rows, f"^Task 'digits', {message}"


def test_labels_are_refused_before_the_text_tower_is_loaded(make, bad):
    rows, message = bad
    with pytest.raises(ValueError, match=message):
        make({"digits": rows}, clip_model="nowhere/at-all").evaluate(torch.nn.Flatten())


def test_labels_of_the_test_sets_are_refused_before_anything_is_learned(
    make, bad, tiny_modelpool, monkeypatch
):
    rows, message = bad
    algorithm = AdaMergingAlgorithm(**QUIET)
    algorithm._program = SimpleNamespace(taskpool=make({"digits": rows}))
    monkeypatch.setattr(type(tiny_modelpool), "load_model", None)
    with pytest.raises(ValueError, match=message):
        algorithm.run(tiny_modelpool)


class Listed:
    """A pool of one expert over samples in memory."""

    def __new__(cls, modelpool, rows):
        models = {n: modelpool._models[n] for n in ("_pretrained_", "digits")}
        options = {
            "processor": models["_pretrained_"],
            "test_datasets": {"digits": rows},
        }
        return type(modelpool)(OmegaConf.create(models), **options)


def test_samples_in_memory_are_learned_on_whatever_their_labels(tiny_modelpool, digits):
    learned = []
    for make_row in (
        lambda row: row,
        lambda row: {"img": row["image"]},
        lambda row: (row["image"], "no label"),
    ):
        method = AdaMergingAlgorithm(**QUIET)
        method.run(Listed(tiny_modelpool, [make_row(row) for row in digits]))
        learned.append(method.result.raw)
    assert torch.equal(learned[0], learned[1]) and torch.equal(learned[0], learned[2])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"photo": 1}], "Task 'digits', sample 0: it has no image, only the columns"),
        (
            [{"image": "a.png"}] * 3,
            "Task 'digits', sample 0: its image is a str, expec",
        ),
        (iter(()), r"Task 'digits': its data set is a .*iterator, expected .*len\(\)"),
        ([], "dataset of task 'digits' is empty"),
    ],
)
def test_samples_are_refused_before_a_model_is_loaded(
    rows, message, tiny_modelpool, monkeypatch
):
    pool = Listed(tiny_modelpool, rows)
    monkeypatch.setattr(type(pool), "load_model", None)
    with pytest.raises(ValueError, match=message):
        AdaMergingAlgorithm(**QUIET).run(pool)


def test_another_class_order_is_refused_before_learning(tiny_modelpool, described):
    pool = Listed(tiny_modelpool, None)
    names = described["classnames"]
    pool._test_datasets = {"digits": Classed([*names[1:], names[0]])}
    with pytest.raises(ValueError, match=f"class 0 is '{names[0]}' by its class names"):
        adapter_for(pool).check_datasets("test")


class Classed:
    def __init__(self, classes):
        self.classes = classes

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return Image.new("L", (20, 20), index), index


# -- FusionBench's heads --------------------------------------------------------------


class Heads(CLIPClassificationMixin):
    """FusionBench's own construction of zero-shot heads, which it keeps on disk."""

    def __init__(self, modelpool):
        self.modelpool, self.zeroshot_weights = modelpool, {}

    def of(self, task: str) -> torch.Tensor:
        self.setup_zero_shot_classification_head(task_names=[task])
        return self.zeroshot_weights[task]


def test_fusion_benchs_kept_heads_see_changed_names_and_templates(
    tiny_modelpool, tmp_path, monkeypatch
):
    monkeypatch.setattr("fusion_bench.utils.cache_utils.DEFAULT_CACHE_DIR", tmp_path)
    heads = []
    for names, template in (
        (["round", "square"], "a {}."),
        (["round", "flat"], "a {}."),
        (["round", "flat"], "the {}."),
    ):
        with registered_tasks({"own": {"classnames": names, "templates": [template]}}):
            heads.append(Heads(tiny_modelpool).of("own"))
    for one, other in itertools.combinations(heads, 2):
        assert not torch.allclose(one[1], other[1])
    assert torch.equal(heads[0][0], heads[1][0])


# -- classifiers with heads of their own ----------------------------------------------


class Brightness(torch.nn.Module):
    """Logits that say in which third of the range the first pixel is."""

    def __init__(self):
        super().__init__()
        self.places = torch.nn.Parameter(torch.tensor([0.0, 0.5, 1.0]))

    def forward(self, images):
        return -((images[:, :1, 0, 0] - self.places) ** 2)


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).movedim(-1, 0) / 255


@pytest.mark.parametrize("depth", [8, 16])
def test_classifiers_of_images_have_own_tasks_and_checked_labels(depth):
    kind, step = (np.uint8, 1) if depth == 8 else (np.uint16, 257)
    greys = [0, 128, 255, 255]
    images = [Image.fromarray(np.full((4, 4), g * step, kind)) for g in greys]
    rows = [
        {"img": i, "fine_label": n} for n, i in zip((0, 1, 2, 0), images, strict=True)
    ]
    options = {"processor": to_tensor, "dataloader_kwargs": {"batch_size": 3}}
    options["tasks"] = {"light": {"classnames": ["dark", "grey", "white"]}}
    before = known()
    taskpool = ImageTaskPool({"light": rows}, **options)
    report = taskpool.evaluate(Brightness())
    assert report["light"]["accuracy"] == 0.75 and known() == before
    assert taskpool.evaluate(Brightness()) == report
    rows[3]["fine_label"] = 3
    with pytest.raises(
        ValueError, match="^Task 'light', sample 3: its label is 3, but"
    ):
        ImageTaskPool({"light": rows}, **options).evaluate(Brightness())
    one = {"light": {"classnames": ["light"]}}
    with pytest.raises(ValueError, match="Task 'light' has 1 class, of which every"):
        ImageTaskPool({"light": rows}, **options | {"tasks": one}).check_samples()
    with pytest.raises(
        ValueError, match=r"task\(s\) \['dim'\].*{classnames: \[...\]}}"
    ):
        ImageTaskPool({"dim": rows}, **options).evaluate(Brightness())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["a", "b", "c"],
            "^Task 'light' has 2 classes by its class names, but the head .* has 3 outp",
        ),
        (
            ["light", "dark"],
            "class 0 is 'light' by id2label in the config of the expert",
        ),
    ],
)
def test_classes_are_those_of_the_experts_head(names, message):
    classes = ["dark", "light"]
    labels = datasets.ClassLabel(names=classes)
    rows = datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (4, 4))] * 2, "label": [0, 1]},
        datasets.Features({"image": datasets.Image(), "label": labels}),
    )
    size = {"embedding_size": 2, "hidden_sizes": [2], "depths": [1]}
    expert = ResNetForImageClassification(ResNetConfig(**size))
    expert.config.id2label = dict(enumerate(names))
    options = {"processor": to_tensor, "dataloader_kwargs": {}}
    options["tasks"] = {"light": {"classnames": classes}}
    taskpool = ImageTaskPool({"light": rows}, **options)
    modelpool = BaseModelPool({"light": expert})
    taskpool._program = SimpleNamespace(modelpool=modelpool)
    with pytest.raises(ValueError, match=message):
        taskpool.check_samples()
    expert.config.id2label = dict(enumerate(classes))
    taskpool.check_samples()
