"""A saved tinted model is the old one or the new one, or says which file is wrong."""

import json
import os
import signal
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from toy_tinting import BLOCK, TASKS, ToyAdapter, ToyNet, make, tint, toy_pool

from fusion_plugins import TintedModel
from fusion_plugins.adaptation import AdaptationDiverged
from fusion_plugins.merged import files
from fusion_plugins.pools import as_modelpool


def filled(value: float) -> TintedModel:
    """A model all of whose numbers are `value`."""
    trunk = ToyNet()
    layers = {task: torch.nn.Linear(8, 8) for task in TASKS}
    model = TintedModel(trunk, {"blocks.1.mix": layers})
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, value)
    (plain,) = model._plain["blocks.1.mix"]
    for parameter in plain.parameters():
        torch.nn.init.constant_(parameter, value)
    return model


def loaded(folder: Path) -> set[float]:
    model = TintedModel.from_pretrained(folder, trunk=ToyNet())
    return {number for p in model.parameters() for number in p.flatten().tolist()}


# Every call that writes or moves something, in their order: 0 to 8.
WRITES = [
    (files, "save_model"),
    (files, "save_file"),
    (Path, "write_text"),
    (Path, "rename"),
]


def stop_before(call: int, stop) -> None:
    """Call `stop` in place of the given write."""
    seen = []

    def counted(write):
        def instead(*arguments, **options):
            seen.append(write)
            if len(seen) == call + 1:
                stop()
            return write(*arguments, **options)

        return instead

    for owner, name in WRITES:
        setattr(owner, name, counted(getattr(owner, name)))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stop", [die, fail])
@pytest.mark.parametrize("call", range(10))
def test_a_save_that_ends_early_leaves_the_old_model_or_the_new(call, stop, tmp_path):
    folder = tmp_path / "model"
    filled(1.0).save_pretrained(folder)
    child = os.fork()
    if not child:
        try:
            stop_before(call, stop)
            filled(2.0).save_pretrained(folder)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) == (stop is die and call < 9)
    assert loaded(folder) == ({1.0} if call < 9 else {2.0})
    filled(3.0).save_pretrained(folder)
    assert loaded(folder) == {3.0} and os.listdir(tmp_path) == ["model"]


def test_a_folder_with_something_else_is_written_into(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    filled(1.0).save_pretrained(tmp_path)
    assert loaded(tmp_path) == {1.0} and (tmp_path / "notes.txt").exists()


def test_files_beside_an_older_model_stay(tmp_path):
    folder = tmp_path / "model"
    filled(1.0).save_pretrained(folder)
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("mine")
    (folder / "LICENSE").write_text("mine")
    (folder / "model-00001-of-00002.safetensors").write_text("older weights")
    (folder / "tints" / "gone.safetensors").write_text("older weights")
    filled(2.0).save_pretrained(folder)
    assert loaded(folder) == {2.0}
    assert (folder / "LICENSE").read_text() == "mine"
    assert (folder / "notes" / "mine.txt").read_text() == "mine"
    assert not [
        p
        for p in folder.rglob("*")
        if p.is_file() and p.read_text(errors="replace") == "older weights"
    ]


def test_a_folder_of_another_model_is_left_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=f"{tmp_path} holds another model, whose conf"):
        filled(1.0).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_first_save_that_was_killed_is_repeated(tmp_path):
    filled(1.0).save_pretrained(tmp_path)
    (tmp_path / "tinted.json").unlink()
    filled(2.0).save_pretrained(tmp_path)
    assert loaded(tmp_path) == {2.0}


@pytest.mark.parametrize("below", [".", "notes"])
def test_the_working_folder_stays(below, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    (folder / below).mkdir(parents=True)
    monkeypatch.chdir(folder / below)
    for value in (1.0, 2.0):
        filled(value).save_pretrained(os.path.relpath(folder))
        assert Path.cwd() == folder / below and loaded(folder) == {value}


def test_files_that_were_put_into_the_trunk_stay(tmp_path):
    filled(1.0).save_pretrained(tmp_path)
    mine = tmp_path / "trunk" / "tokenizer.json"
    mine.write_text("mine")
    older = ["model-00001-of-00002.safetensors", "pytorch_model.bin"]
    for name in older:
        (tmp_path / "trunk" / name).write_text("older weights")
    filled(2.0).save_pretrained(tmp_path)
    assert loaded(tmp_path) == {2.0} and mine.read_text() == "mine"
    assert not any((tmp_path / "trunk" / name).exists() for name in older)


def index_with(**changes) -> bytes:
    index = {"format": 2, "sites": ["blocks.1.mix"], "tasks": list(TASKS)} | changes
    return json.dumps({k: v for k, v in index.items() if v is not None}).encode()


DAMAGED = {
    "tinted.json is damaged": [
        b"",
        b"{",
        b"[1, 2]",
        b"null",
        b"\xff\xfe",
        index_with(sites=None),
        index_with(format=None),
        index_with(sites=[]),
        index_with(tasks=[]),
        index_with(tasks=[3]),
        index_with(sites="head"),
    ],
    "tinted.json has format 3, this version reads .1, 2.. Update": [
        index_with(format=3),
        index_with(format=3, sites={"a": 1}),
    ],
    r"aa.safetensors holds no tensors of 'blocks.7.mix'": [
        index_with(sites=["blocks.7.mix"])
    ],
    r"lists the task 'zz', but there is no .*zz.safetensors": [
        index_with(tasks=["zz"])
    ],
}


@pytest.mark.parametrize(
    "message, content", [(m, c) for m, contents in DAMAGED.items() for c in contents]
)
def test_a_damaged_index_is_named(message, content, tmp_path):
    filled(1.0).save_pretrained(tmp_path)
    (tmp_path / "tinted.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        loaded(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("length", [0, 5, 200])
def test_a_truncated_tint_is_named(length, tmp_path):
    filled(1.0).save_pretrained(tmp_path)
    path = tmp_path / "tints" / "bb.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=f"{path} is damaged .*Copy it again") as error:
        loaded(tmp_path)
    assert "\n" not in str(error.value)


def test_a_trunk_that_does_not_fit_is_named_in_one_line(tmp_path):
    filled(1.0).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="model.safetensors does not fit a Linear"
    ) as e:
        TintedModel.from_pretrained(tmp_path, trunk=torch.nn.Linear(2, 2))
    assert "\n" not in str(e.value)


def trunk_of(*layers: torch.nn.Module) -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(2, 2), *layers)


@pytest.mark.parametrize(
    ("plain", "layer", "message"),
    [
        (torch.nn.ReLU(), torch.nn.GELU(), "has no tensors"),
        (
            torch.nn.Conv2d(2, 2, 1),
            torch.nn.Conv2d(2, 3, 1),
            "differs from the trunk's",
        ),
        (trunk_of(), trunk_of(torch.nn.LayerNorm(2)), "differs from the trunk's"),
        (trunk_of(), torch.nn.Sequential(torch.nn.LayerNorm(2)), "differs from the"),
    ],
)
def test_layers_that_could_not_be_loaded_are_refused(plain, layer, message, tmp_path):
    message = f"layer at '1' of the task 'aa' {message}.*could not be loaded"
    with pytest.raises(ValueError, match=message) as error:
        TintedModel(trunk_of(plain), {"1": {"aa": layer}}).save_pretrained(tmp_path)
    assert "\n" not in str(error.value) and not any(tmp_path.iterdir())


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_may_have_other_sizes(bias, tmp_path):
    wide = torch.nn.Sequential(torch.nn.Linear(2, 9, bias=bias), torch.nn.Linear(9, 3))
    plain = trunk_of(torch.nn.Linear(2, 2))
    TintedModel(trunk_of(plain), {"1": {"aa": wide}}).save_pretrained(tmp_path)
    model = TintedModel.from_pretrained(tmp_path, trunk=trunk_of(plain))
    layer = model.switches[0]._option_modules["aa"]
    want = wide.state_dict()
    assert all(torch.equal(v, want[n]) for n, v in layer.state_dict().items())


CHANGED = {
    "tensors of 'blocks.1.mix' do not fit a ToyNet, in the tint of 'bb': .*shape .8,.": (
        lambda t: t | {"blocks.1.mix/weight": torch.zeros(8)}
    ),
    "bb.safetensors: 'blocks.1.mix/bias' holds NaN. Copy or": (
        lambda t: t | {"blocks.1.mix/bias": torch.full((8,), torch.nan)}
    ),
}


@pytest.mark.parametrize("message", CHANGED)
def test_a_tint_with_other_numbers_is_named(message, tmp_path):
    filled(1.0).save_pretrained(tmp_path)
    file = tmp_path / "tints" / "bb.safetensors"
    save_file(CHANGED[message](load_file(file)), file)
    with pytest.raises(ValueError, match=message) as error:
        loaded(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("head", [torch.nn.Linear(2, 3), torch.nn.ReLU()])
def test_heads_of_another_form_are_named(head, tmp_path):
    own = trunk_of(torch.nn.Linear(2, 3))
    TintedModel(trunk_of(), {"head": {"aa": own}}).save_pretrained(tmp_path)
    kind = type(head).__name__
    message = f"'head' do not fit a {kind}, in the tint of 'aa': .*Give the heads they"
    with pytest.raises(ValueError, match=message) as error:
        TintedModel.from_pretrained(tmp_path, trunk=trunk_of(), heads={"aa": head})
    assert "\n" not in str(error.value)


# -- names on the hub ------------------------------------------------------------------


def test_a_name_that_is_none_is_refused_before_anything_is_saved(monkeypatch):
    monkeypatch.setattr(TintedModel, "save_pretrained", None)
    with pytest.raises(ValueError, match="'a b/c' cannot be a model's name on the hub"):
        filled(1.0).push_to_hub("a b/c")


def test_a_model_that_cannot_be_downloaded_is_named_in_one_line(monkeypatch):
    def lacking(name):
        raise LocalEntryNotFoundError(f"{name}\nis not in the cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lacking)
    message = r"^nope/nada is neither .*.nope/nada is not in the cache.. Check the path"
    with pytest.raises(ValueError, match=message):
        TintedModel.from_pretrained("nope/nada")


# -- what is refused before a dataset is read ------------------------------------------


class Unread(ToyAdapter):
    def dataset(self, task: str, split: str):
        pytest.fail("a dataset was read")


NAMES = ["", "training", "keys", "type", "a.b", "a" * 300, ("a/b", "a_b")]


@pytest.mark.parametrize("names", NAMES, ids=str)
def test_task_names_are_refused_before_a_dataset_is_read(names):
    experts = list(toy_pool().values())
    names = (names, "other") if isinstance(names, str) else names
    pool = as_modelpool(dict(zip(("_pretrained_", *names), experts, strict=False)))
    with pytest.raises(ValueError, match="a task has the name .*Rename it") as error:
        make().run(pool, Unread(pool))
    assert len(str(error.value)) < 250


def test_a_diverged_tint_is_refused():
    with pytest.raises((AdaptationDiverged, ValueError), match="NaN or Inf"):
        tint(make(tint_lr=1e30, rounds=8, tint=BLOCK))


# -- checkpoints know the layer after the trunk ----------------------------------------


class OtherProjection(ToyAdapter):
    def projection(self):
        layer = super().projection()
        layer.weight.data.mul_(-1)
        return layer


def test_a_checkpoint_made_with_another_projection_is_not_continued(tmp_path):
    def method():
        return make(rounds=2, checkpoint_every=2, checkpoint_dir=str(tmp_path))

    broken, pool = method(), as_modelpool(toy_pool())
    broken.watch.stop_after = 4
    with pytest.raises(KeyboardInterrupt):
        broken.run(pool, ToyAdapter(pool))
    anew = method()
    anew.run(pool, OtherProjection(pool))
    assert [report.step for report in anew.watch.reports] == list(range(6))
    again = method()
    again.run(pool, ToyAdapter(pool))
    assert again.watch.reports[0].step in (2, 4)
