"""Building a pool of text experts: files, resuming, refusals, the command line."""

import csv
import json
import shutil

import pytest
import torch
from safetensors.torch import load, save
from toy_text import CLASSES, make_bert, make_tokenizer, sentences

from fusion_plugins import AWDAlgorithm
from fusion_plugins.cli import main
from fusion_plugins.demo import text_build
from fusion_plugins.demo.recipe import TextRecipe
from fusion_plugins.demo.text_build import build_text_pool, train_expert
from fusion_plugins.demo.text_data import TextTask, read_text_folder
from fusion_plugins.demo.text_pools import (
    demo_text_modelpool,
    demo_text_taskpool,
    load_text_dataset,
)
from fusion_plugins.pools import adapter_for

RECIPE = TextRecipe(batch_size=16, max_length=12, epochs=1)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    make_bert(2, 0).bert.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_tasks() -> list[TextTask]:
    return [TextTask(t, sentences(t, 48), sentences(t, 24)) for t in CLASSES]


@pytest.fixture(scope="module")
def pool(encoder, tmp_path_factory):
    root = tmp_path_factory.mktemp("pools") / "pool"
    return build_text_pool(encoder, make_tasks(), root, RECIPE)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The tasks as a folder of TSV files."""
    folder = tmp_path_factory.mktemp("data") / "text"
    for task in make_tasks():
        (folder / task.name).mkdir(parents=True)
        for split in ("train", "test"):
            write(folder / task.name / f"{split}.tsv", getattr(task, split))
    return folder


def write(path, rows) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, "excel-tab")
        writer.writerow(["label", "text"])
        writer.writerows([row["label"], row["text"]] for row in rows)


def weights(folder) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_the_pool_has_what_its_description_says(pool):
    description = json.loads((pool / "pool.json").read_text())
    assert description["recipe"] == RECIPE.to_dict()
    assert description["tasks"]["bb"] == {
        "classes": 3,
        "train_sentences": 48,
        "test_sentences": 24,
    }
    files = {p.name for p in pool.iterdir()}
    assert files == {"pool.json", "pretrained", "experts", "data"}
    assert {p.name for p in (pool / "experts").iterdir()} == set(CLASSES)
    assert not list(pool.parent.glob(".pool.building*"))


def test_its_pools_give_the_accuracies_measured_at_the_build(pool):
    written = json.loads((pool / "pool.json").read_text())["accuracy"]["experts"]
    for task in CLASSES:
        modelpool = demo_text_modelpool(pool, [task])
        assert modelpool.model_names == [task]
        expert = modelpool.load_model(task)
        report = demo_text_taskpool(pool, [task]).evaluate(expert)
        assert report[task]["accuracy"] == pytest.approx(written[task])


def test_its_experts_are_read_in_place_and_merged(pool):
    modelpool = demo_text_modelpool(pool)
    adapter = adapter_for(modelpool)
    assert adapter.files(modelpool, "aa") == pool / "experts" / "aa"
    report = demo_text_taskpool(pool).evaluate(AWDAlgorithm().run(modelpool))
    assert set(report) == {"model_info", *CLASSES, "average"}


def test_its_sentences_are_those_it_was_built_from(pool):
    for task in make_tasks():
        for split in ("train", "test"):
            rows = load_text_dataset(str(pool), task.name, split)
            assert rows == list(getattr(task, split))


def test_a_stopped_build_goes_on_and_gives_the_same_weights(
    encoder, pool, tmp_path, monkeypatch
):
    trained = []

    def stopping(encoder, tokenizer, task, *rest):
        if task.name == "bb" and "bb" not in trained:
            trained.append("bb")
            raise KeyboardInterrupt
        trained.append(task.name)
        return train_expert(encoder, tokenizer, task, *rest)

    monkeypatch.setattr(text_build, "train_expert", stopping)
    root = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        build_text_pool(encoder, make_tasks(), root, RECIPE)
    assert not root.exists() and trained == ["aa", "bb"]
    build_text_pool(encoder, make_tasks(), root, RECIPE)
    assert trained == ["aa", "bb", "bb"]
    for name in ("pretrained", "experts/aa", "experts/bb"):
        assert weights(root / name) == weights(pool / name)
    scores = [
        json.loads((p / "pool.json").read_text())["accuracy"] for p in (root, pool)
    ]
    assert scores[0] == scores[1]


def test_a_killed_build_of_other_options_is_in_nobodys_way(
    encoder, tmp_path, monkeypatch
):
    def killed(*args):
        raise KeyboardInterrupt

    root, recipe = tmp_path / "pool", TextRecipe(batch_size=24, epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(text_build, "train_expert", killed)
        with pytest.raises(KeyboardInterrupt):
            build_text_pool(encoder, make_tasks(), root, recipe)
    (left,) = tmp_path.glob(".pool.building-*")
    (left / "experts" / ".aa.unfinished").mkdir(parents=True)
    build_text_pool(encoder, make_tasks(), root, RECIPE)
    assert json.loads((root / "pool.json").read_text())["recipe"] == RECIPE.to_dict()
    assert {p.name for p in tmp_path.iterdir()} == {"pool", ".pool.lock"}
    with pytest.raises(ValueError, match="holds a pool of another recipe"):
        build_text_pool(encoder, make_tasks(), root, recipe)


def test_nothing_is_overwritten(encoder, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        build_text_pool(encoder, make_tasks(), tmp_path / "full", RECIPE)


def test_training_leaves_the_callers_random_state(encoder):
    torch.manual_seed(3)
    want = torch.rand(1)
    torch.manual_seed(3)
    train_expert(encoder, make_tokenizer(), make_tasks()[0], RECIPE, lambda: None)
    assert torch.equal(torch.rand(1), want)


# -- the command line -----------------------------------------------------------------


def test_the_command_builds_and_says_how_to_go_on(
    encoder, data, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("FUSION_PLUGINS_DATA", str(data.parent))
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "out"
    options = ["--encoder", str(encoder), "--out", str(out), "--tasks", "bb"]
    options += ["--epochs", "1", "--max-length", "12", "--lr", "1e-4"]
    assert main(["demo", "build-text", *options]) == 0
    said = capsys.readouterr().out
    assert "bb" in said and "experts" in said
    assert f"modelpool=demo-text modelpool.root={out} taskpool=demo-text" in said
    assert json.loads((out / "pool.json").read_text())["recipe"]["lr"] == 1e-4
    assert main(["demo", "build-text", *options]) == 2
    assert "not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--encoder": "nowhere"}, "nowhere is not a model folder"),
        ({"--data": "nowhere"}, "nowhere holds no tasks"),
        ({"--tasks": "cc"}, "no task ['cc']"),
        ({"--epochs": "0"}, "epochs is 0, expected a whole number >= 1"),
        ({"--data": None}, "give --data, or set $FUSION_PLUGINS_DATA"),
    ],
)
def test_wrong_input_ends_with_a_message(
    changes, message, encoder, data, tmp_path, capsys, monkeypatch
):
    monkeypatch.delenv("FUSION_PLUGINS_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "300")
    given = {"--encoder": str(encoder), "--data": str(data)}
    given |= {"--out": str(tmp_path / "out")} | changes
    options = [word for k, v in given.items() if v is not None for word in (k, v)]
    assert main(["demo", "build-text", *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", lambda old: b"{", "has no usable tokenizer|no usable encoder"),
        ("model.safetensors", lambda old: old[:-50], "holds no usable encoder"),
        ("model.safetensors", lambda old: b"version https://git-lfs", "no usable enco"),
        ("model.safetensors", None, "holds no usable encoder"),
        (
            "model.safetensors",
            lambda old: save({f"x.{k}": v for k, v in load(old).items()}),
            "has no weights for .* tensors of the encoder, such as bert.embeddings",
        ),
    ],
)
def test_a_damaged_encoder_is_named(encoder, tmp_path, name, change, message):
    copy = tmp_path / "copy"
    shutil.copytree(encoder, copy)
    if change is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(change((encoder / name).read_bytes()))
    with pytest.raises(ValueError, match=f"copy .*({message})"):
        build_text_pool(copy, make_tasks(), tmp_path / "out", RECIPE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label\tbody\n0\tgood\n", r"has no \['text'\], only"),
        ("label\ttext\n-1\tgood\n", "labels must be 0, 1, 2, ...; got -1"),
        ("label\ttext\n0.5\tgood\n", "labels must be 0, 1, 2, ...; got 0.5"),
        ("label\ttext\n", "a header"),
    ],
)
def test_wrong_files_are_named(text, message, tmp_path):
    (tmp_path / "aa").mkdir()
    for split in ("train", "test"):
        (tmp_path / "aa" / f"{split}.tsv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_text_folder(tmp_path)


def test_pools_need_a_folder_that_is_one(tmp_path):
    with pytest.raises(ValueError, match="no default folder: set modelpool.root"):
        demo_text_modelpool()
    with pytest.raises(ValueError, match="is not a demo pool.*build-text --help"):
        demo_text_taskpool(tmp_path)


def test_unknown_tasks_and_splits_are_named(pool):
    with pytest.raises(ValueError, match=r"unknown tasks \['cc'\].*\['aa', 'bb'\]"):
        demo_text_modelpool(pool, ["cc"])
    with pytest.raises(ValueError, match="unknown split 'val'"):
        load_text_dataset(str(pool), "aa", "val")
