"""Own folders in; a table, saved models and cards out, which others can load."""

import re
import sys
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import torch
from fusion_bench.scripts.cli import _hydra_main
from huggingface_hub import ModelCard
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionModel,
)

from fusion_plugins import AWDAlgorithm, TintedModel
from fusion_plugins.compare.evaluation import evaluate_model
from fusion_plugins.demo import demo_taskpool
from fusion_plugins.demo.datasets import load_dataset
from fusion_plugins.merged.heads import ClassificationHead
from fusion_plugins.pools.clip_tasks import registered_tasks
from fusion_plugins.pools.own_folders import (
    folder_modelpool,
    read_data,
    register_data,
)
from fusion_plugins.pools.saving import whole_clip
from fusion_plugins.task_vectors.names import TOWER, towerless
from fusion_plugins.taskpool.own_folders import folder_taskpool

TASKS = ("digits", "textures")
PROMPTS = {
    "digits": ["a scan of the digit {}.", "the digit {}."],
    "textures": ["a texture of {}.", "a pattern of {}."],
}


@pytest.fixture(scope="module")
def own(tiny_pool_root, tmp_path_factory):
    """Model folders, and of the first task a folder of images per class."""
    root = tmp_path_factory.mktemp("own")
    samples = load_dataset(str(tiny_pool_root), TASKS[0])
    for index in range(len(samples)):
        sample = samples[index]
        name = samples.class_names[sample["label"]]
        place = root / "images" / name / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        sample["image"].save(place)
    models = {"_pretrained_": str(tiny_pool_root / "pretrained")}
    models |= {task: str(tiny_pool_root / "experts" / task) for task in TASKS}
    files = (root / "images", tiny_pool_root / "data" / f"{TASKS[1]}.npz")
    return models, dict(zip(TASKS, map(str, files), strict=True)), root


def listed(values):
    return "{" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}"


def typed(own, *words):
    """Run the command in this process."""
    models, data, root = own
    words = [*words, f"modelpool.models={listed(models)}"]
    words += [f"modelpool.data={listed(data)}", f"hydra.run.dir={root}/run"]
    words += [f"modelpool.templates={listed(PROMPTS)}"]
    words += ["hydra/job_logging=none", "hydra/hydra_logging=none"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fusion_bench", *words])
        patch.setenv("HF_DATASETS_CACHE", str(root / "cache"))
        patch.setenv("TERM_COLOR_SCHEME", "dark")  # FusionBench asks the terminal else
        GlobalHydra.instance().clear()
        _hydra_main()
        GlobalHydra.instance().clear()


@pytest.fixture(scope="module")
def finished(own, no_pictures):
    results = own[2] / "results"
    methods = "methods=[pretrained,experts,awd]"
    logger = ("fabric/loggers=csv_logger", f"path.log_dir={own[2]}/log")
    words = ("--config-name", "own_experts", methods, f"results={results}")
    typed(own, *words, *logger)
    return results


def test_folders_become_a_table_and_a_model_with_the_same_numbers(own, finished):
    models, data, _ = own
    table = pd.read_csv(finished / "results.csv").set_index("label")
    assert list(table.index) == ["pretrained", "experts", "awd"]
    (saved,) = finished.glob("work/*/merged_model")  # the pretrained model is not kept
    card = ModelCard.load(saved / "README.md")
    assert card.data.base_model == ["pretrained", *TASKS]
    assert card.data.to_dict()["base_model_relation"] == "merge"
    assert card.data.library_name == "transformers" and "merge" in card.data.tags
    assert str(Path(models["_pretrained_"]).parent) not in str(card)
    CLIPProcessor.from_pretrained(saved)
    report = evaluate_model(
        CLIPVisionModel.from_pretrained(saved), folder_taskpool(models, data, PROMPTS)
    ).tasks
    named = {r.dataset_name: r.metric_value for r in card.data.eval_results}
    assert named == {task: report[task]["accuracy"] for task in TASKS}
    # Not all releases of pandas read back the last digit.
    assert table.loc["awd", list(TASKS)].to_dict() == pytest.approx(named, rel=1e-12)
    demo = demo_taskpool(Path(models["_pretrained_"]).parent, tasks=TASKS)
    reference = evaluate_model(CLIPVisionModel.from_pretrained(saved), demo).tasks
    assert named == {task: reference[task]["accuracy"] for task in TASKS}


def test_the_users_logger_gets_a_number_per_method_and_task(own, finished):
    (file,) = (own[2] / "log").rglob("metrics.csv")
    names = file.read_text().splitlines()[0]
    assert all(f"awd/{task}" in names for task in TASKS), names


def test_one_method_saves_its_model_and_its_scores_unasked(own, capsys, monkeypatch):
    models, data, root = own
    monkeypatch.chdir(root)
    words = ("method=awd", "modelpool=folders", "taskpool=folders")
    typed(own, *words, "+merged_model_save_kwargs.whole=true")
    said = capsys.readouterr().out
    place = re.search(r"^Merged model: (.*/merged_model)$", said, re.MULTILINE)
    assert place is not None, said
    clip = CLIPModel.from_pretrained(place[1])
    CLIPProcessor.from_pretrained(place[1])
    card = ModelCard.load(Path(place[1], "README.md"))
    named = {r.dataset_name: r.metric_value for r in card.data.eval_results}
    tasks = folder_taskpool(models, data, PROMPTS)
    report = evaluate_model(clip.vision_model, tasks).tasks
    assert named == {task: report[task]["accuracy"] for task in TASKS}
    assert card.data.eval_results[0].task_type == "image-classification"
    assert card.data.model_name == f"AWD of {', '.join(TASKS)}"


def test_a_clip_is_saved_whole_on_request(own, tmp_path):
    models, data, _ = own
    pool = folder_modelpool(models, data)
    merged = AWDAlgorithm().run(pool)
    whole_clip(merged, pool).save_pretrained(tmp_path)
    clip = CLIPModel.from_pretrained(tmp_path).state_dict()
    base = CLIPModel.from_pretrained(models["_pretrained_"]).state_dict()
    vision = {f"{TOWER}{towerless(n)}": t for n, t in merged.state_dict().items()}
    assert vision.keys() < clip.keys()
    for name, value in clip.items():
        expected = vision[name] if name.startswith(TOWER) else base[name]
        assert torch.equal(value, expected), name


def test_licences_of_the_inputs_are_named(own, tmp_path):
    models, data, _ = own
    from fusion_plugins.merged.cards import model_card

    for name, licence in (("a", "mit"), ("b", "apache-2.0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    sources = {name: str(tmp_path / name) for name in "ab"} | {"c": "user/c", "d": None}
    card = ModelCard(model_card("T", "AWD", {"path": str(tmp_path)}, sources))
    assert card.data.license == "other"
    assert card.data.to_dict()["license_name"] == "apache-2.0, mit"
    assert card.data.base_model == ["a", "b", "user/c"]
    assert str(tmp_path.parent) not in str(card)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"---\nlicense: mit\n\ttags: [a\n---\n", "while scanning"),
        (b"---\nlicense: mit\n---\nh\xe9llo", "codec can't decode"),
        (b"---\n- a\n- b\n---\n", "should be a dict"),
        (b"---\nlicense: [mit, 3]\n---\n", "names the licence .'mit', 3., not a text"),
        (b"---\nlicense: {a: b}\n---\n", "names the licence {'a': 'b'}, not a text"),
        (b"---\nlicense: [null]\n---\n", "names the licence .None., not a text"),
        (b"---\nlicense: 2020-01-01\n---\n", "names the licence .*, not a text"),
    ],
)
def test_an_odd_card_of_an_input_is_passed_over(tmp_path, caplog, content, said):
    """It was read after the work, which an error would lose."""
    from fusion_plugins.merged.cards import model_card, note_scores

    for name, text in (("a", content), ("b", b"---\nlicense: mit\n---\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_bytes(text)
    sources = {name: str(tmp_path / name) for name in "ab"}
    card = ModelCard(model_card("T", "AWD", {}, sources))
    assert card.data.license == "mit"
    (warning,) = [r for r in caplog.records if r.name.startswith("fusion_plugins")]
    message = warning.getMessage()
    file = tmp_path / "a" / "README.md"
    assert re.fullmatch(f"{file} .*{said}.*", message)
    note_scores(tmp_path / "a", {"x": ("accuracy", 0.5)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_pretrained_": "nowhere"}, "models._pretrained_ is 'nowhere', expected"),
        ({"data": {"x": "images"}}, "data: there is no model for .'x'., only"),
        ({"data": {"digits": None}}, "data.digits is None, expected a path"),
        ({"digits": 3}, "models.digits is 3, expected a path"),
        (
            {"templates": {"digit": ["{}"]}},
            "templates: there is no model for .'digit'.",
        ),
        ({"templates": {"digits": "a {}."}}, "templates are the single string 'a {}.'"),
    ],
)
def test_what_does_not_fit_is_named(own, change, message):
    models, data, _ = own
    data, templates = change.get("data", data), change.get("templates")
    models = models | {k: v for k, v in change.items() if k in models}
    with pytest.raises(ValueError, match=message):
        folder_modelpool(models, data, templates)


def test_without_models_the_form_is_shown():
    with pytest.raises(ValueError, match="models is None, expected paths by the names"):
        folder_modelpool(None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": None}, "data is None, expected paths by the names of models"),
        ({"batch_size": 0}, "batch_size is 0, expected a whole number >= 1"),
    ],
)
def test_an_evaluation_without_data_or_samples_is_refused(own, options, message):
    models, data, _ = own
    with pytest.raises(ValueError, match=message):
        folder_taskpool(models, **{"data": data} | options)


def test_class_names_may_repeat_in_a_file(tmp_path, caplog):
    file = npz(tmp_path, class_names=np.array(["crane", "crane"]))
    found = read_data(str(file))
    assert found["label"] == [0, 1] and found.class_names == ["crane", "crane"]
    with registered_tasks():
        register_data({"birds": str(file)})
    assert "class names repeat: ['crane']" in caplog.text


def test_files_are_read_as_images_and_texts(own, tmp_path):
    _, data, _ = own
    first = read_data(data[TASKS[1]])[0]
    assert isinstance(first["image"], Image.Image) and first["label"] in range(20)
    kinds = {"a.csv": ",", "b.csv": ";", "c.csv": "\t", "d.TSV": "\t"}
    texts = {n: f"\ufefflabel{mark}text\n1{mark}good\n" for n, mark in kinds.items()}
    texts["e.jsonl"] = '{"label": 1, "text": "good"}\n'
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_data(str(tmp_path / name))[0] == {"label": 1, "text": "good"}


def npz(folder, **changes):
    images, names = np.zeros((2, 8, 8), np.uint8), np.array(["a", "b"])
    arrays = {"x_test": images, "y_test": np.array([0, 1]), "class_names": names}
    np.savez(folder / "x.npz", **arrays | changes)
    return folder / "x.npz"


def test_arrays_of_other_shapes_are_named(tmp_path):
    for shape in ((2, 8, 8, 1), (2, 3, 8, 8), (2, 8)):
        path = npz(tmp_path, x_test=np.zeros(shape, np.uint8))
        message = re.escape(f"x_test has the shape {shape}, y_test (2,), expected")
        with pytest.raises(ValueError, match=message):
            read_data(str(path))


def test_class_names_in_bytes_are_texts(tmp_path):
    found = read_data(str(npz(tmp_path, class_names=np.array([b"cat", "ä".encode()]))))
    assert found.class_names == ["cat", "ä"]


@pytest.mark.parametrize(
    ("splits", "taken"),
    [
        (("train", "validation", "test"), "test"),
        (("train", "validation"), "validation"),
        (("train",), "train"),
    ],
)
def test_training_samples_are_the_last_choice(tmp_path, caplog, splits, taken):
    rows = {n: datasets.Dataset.from_dict({"text": [n], "label": [0]}) for n in splits}
    datasets.DatasetDict(rows).save_to_disk(str(tmp_path))
    assert read_data(str(tmp_path))["text"][0] == taken
    said = f"has no split test; '{taken}' is taken"
    assert (said in caplog.text) == (taken != "test")


def text_file(folder, name, content):
    (folder / name).write_bytes(content)
    return folder / name


def class_folders(folder, full, empty):
    for name in (full, empty):
        (folder / name).mkdir()
    Image.new("RGB", (4, 4)).save(folder / full / "0.png")
    (folder / empty / "notes.txt").write_text("none yet")
    return folder


def without_splits(folder: Path) -> Path:
    datasets.DatasetDict().save_to_disk(str(folder / "saved"))
    return folder / "saved"


UNREADABLE = {
    "label past": lambda f: npz(f, y_test=np.array([0, 2])),
    "one-hot labels": lambda f: npz(f, y_test=np.eye(2)),
    "too few labels": lambda f: npz(f, y_test=np.array([0])),
    "float images": lambda f: npz(f, x_test=np.zeros((2, 8, 8, 3), np.float32)),
    "channels first": lambda f: npz(f, x_test=np.zeros((2, 3, 8, 8), np.uint8)),
    "objects": lambda f: npz(f, class_names=np.array(["a", None])),
    "no zip": lambda f: text_file(f, "x.npz", b"PK\x03\x04"),
    "no file": lambda f: f / "x.npz",
    "no folder": lambda f: f / "gone",
    "latin-1": lambda f: text_file(f, "x.csv", b"label,text\n0,\xe4\n"),
    "unquoted commas": lambda f: text_file(f, "x.csv", b"text,label\na, b,0\n"),
    "no images": lambda f: f,
    "no images of a class": lambda f: class_folders(f, "cat", "dog"),
    "empty": lambda f: text_file(f, "x.jsonl", b""),
    "other kind": lambda f: text_file(f, "x.txt", b"label,text\n0,good\n"),
    "cut off": lambda f: text_file(f, "x.jsonl", b'{"label": 0, "te'),
    "no split": without_splits,
}


@pytest.mark.parametrize("make", UNREADABLE.values(), ids=UNREADABLE)
def test_data_that_cannot_be_read_are_named(tmp_path, make, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / ".cache"))
    path = make(tmp_path)
    with pytest.raises(
        ValueError, match=f"{path}' cannot be read .*It can be"
    ) as found:
        read_data(str(path))
    assert "\n" not in str(found.value)


def test_an_empty_path_is_not_the_current_folder():
    with pytest.raises(ValueError, match="data: '' cannot be read .its path is empty"):
        read_data("")


@pytest.mark.parametrize("names", [("bus", "train"), ("a", "test"), ("testing", "val")])
def test_classes_may_be_named_as_splits(tmp_path, names, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name in names:
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name / "1.png")
    found = read_data(str(tmp_path / "images"))
    assert found["label"] == [0, 1]
    assert found.features["label"].names == sorted(names)


def test_words_that_mean_nothing_to_pandas_are_texts(tmp_path):
    file = text_file(tmp_path, "x.csv", b"label,text\n0,NA\n1,null\n")
    assert read_data(str(file))["text"] == ["NA", "null"]


def test_tinted_models_go_to_the_hub_and_come_back(own, tmp_path, monkeypatch):
    models, _, _ = own
    trunk = CLIPVisionModel.from_pretrained(models["digits"])
    heads = {"digits": ClassificationHead(torch.ones(2, 3))}
    uploaded = {}

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, name, exist_ok, private):
            uploaded[name] = private
            return f"https://hub/{name}"

        def upload_folder(self, repo_id, folder_path):
            assert repo_id in uploaded
            Path(folder_path).rename(tmp_path / "snapshot")
            Path(folder_path).mkdir()

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name: str(tmp_path / "snapshot")
    )
    model = TintedModel(trunk, {"head": heads})
    assert model.push_to_hub("user/name", private=True) == "https://hub/user/name"
    again = TintedModel.from_pretrained("user/name")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_text_folders_are_measured_and_saved_with_their_tokenizer(tmp_path, caplog):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad"])
    )
    size = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    config = BertConfig(vocab_size=6, num_hidden_layers=1, num_labels=2, **size)
    models = {name: str(tmp_path / name) for name in ("_pretrained_", "a", "b")}
    for seed, folder in enumerate(models.values()):
        torch.manual_seed(seed)
        BertForSequenceClassification(config).save_pretrained(folder)
        BertTokenizerFast(str(vocabulary)).save_pretrained(folder)
    file = tmp_path / "a.csv"
    file.write_text("label,text\n1,good\n0,bad\n1,good good\n")
    data = {"a": str(file), "b": str(file)}
    pool = folder_modelpool(models, data)
    merged = AWDAlgorithm().run(pool)
    report = folder_taskpool(models, data).evaluate(merged)
    pool.save_model(merged, str(tmp_path / "merged"))
    again = TintedModel.from_pretrained(tmp_path / "merged")
    repeated = folder_taskpool(models, data).evaluate(again)
    assert [repeated[t] for t in data] == [report[t] for t in data]
    with pytest.raises(ValueError, match="whole is for plain models of CLIP pools"):
        whole_clip(merged, pool)
    kept, own = (
        AutoTokenizer.from_pretrained(f) for f in (tmp_path / "merged", models["a"])
    )
    assert kept.get_vocab() == own.get_vocab()
    card = ModelCard.load(tmp_path / "merged" / "README.md")
    assert card.data.base_model == ["_pretrained_", "a", "b"]
    words = ("tokenizer*", "vocab*", "special_tokens_map.json")  # in any release
    for file in [f for n in words for f in Path(models["_pretrained_"]).glob(n)]:
        file.unlink()
    folder_modelpool(models).save_model(merged, str(tmp_path / "alone"))
    assert "The merged model is alone in" in caplog.text
    assert not [f for n in words for f in (tmp_path / "alone").glob(n)]
    TintedModel.from_pretrained(tmp_path / "alone")


def test_a_data_set_without_splits_is_named_without_a_warning(tmp_path, caplog):
    with pytest.raises(ValueError, match=r"cannot be read .it has no split."):
        read_data(str(without_splits(tmp_path)))
    assert not caplog.records
