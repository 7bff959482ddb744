"""Nothing learned is lost, mixed up with another run, or written where it is wrong."""

import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from fusion_bench.modelpool import BaseModelPool
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_adamerging_algorithm import toy_models
from toy_runs import (
    STEPS,
    Adapter,
    OwnHeads,
    OwnHeadsPool,
    algorithm,
    checkpoints,
    count_steps,
    on_cpu,
    run,
    same_bits,
    written,
)

from fusion_plugins import AdaMergingAlgorithm, AWDAlgorithm
from fusion_plugins.adaptation import AdaptationDiverged
from fusion_plugins.learned import algorithm as learned
from fusion_plugins.learned import identity

RESULTS = ["coefficients.json", "coefficients.safetensors", "coefficients.png"]


def fail_to_save(monkeypatch) -> None:
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(learned, "save_results", full)


@pytest.fixture
def unsaved(tmp_path, monkeypatch) -> Path:
    """The folder of a run that had learned everything when the disk was full."""
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        fail_to_save(patch)
        run(tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == [
        "step_00000006",
        "step_00000008",
    ]
    return tmp_path


# -- a checkpoint is used for the very same run alone ---------------------------------


class OtherSamples(Adapter):
    def dataset(self, task, split):
        samples = super().dataset(task, split)
        samples[4, 3] += 1e-3
        return samples


class OtherHeads(Adapter):
    def heads(self):
        heads = super().heads()
        heads["two"].weight.data.copy_(heads["two"].weight.data.flip(0).clone())
        return heads


def retrained() -> dict:
    """An expert with the same norms, its entries in another order."""
    models = toy_models()
    base, weight = models["_pretrained_"][0].weight.data, models["two"][0].weight.data
    weight.copy_(base + (weight - base).flip(0))
    return models


def moved() -> dict:
    """Base and experts moved together: the task vectors stay."""
    models = toy_models()
    for model in models.values():
        model[2].weight.data.add_(1.0)
    return models


CHANGES = {
    "all_samples": {"adapter": OtherSamples},
    "heads": {"adapter": OtherHeads},
    "weights": {"models": retrained()},
    "weights of the base": {"models": moved()},
    "versions": {},
    "lr": {"lr": 2e-2},
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_checkpoint_of_another_run_is_not_continued(what, unsaved, monkeypatch):
    if what == "versions":
        monkeypatch.setattr(identity, "version", lambda name: version(name) + ".1")
    path = str(checkpoints(unsaved)[0])
    message = (
        f"resume: .*step_00000006 belongs to .*{what.split()[0]}: .* -> .*resume=n"
    )
    with pytest.raises(ValueError, match=message) as error:
        run(unsaved, resume=path, **CHANGES[what])
    assert "\n" not in str(error.value)
    steps = count_steps(monkeypatch)
    run(unsaved, **CHANGES[what])
    assert steps == list(range(STEPS))


@pytest.mark.parametrize("resume", ["auto", "a path"])
def test_the_same_run_is_continued(resume, unsaved, monkeypatch):
    steps = count_steps(monkeypatch)
    run(unsaved, resume=str(checkpoints(unsaved)[0]) if resume != "auto" else "auto")
    assert steps == ([] if resume == "auto" else [6, 7])


def test_streamed_samples_are_part_of_a_runs_identity(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(OSError):
        fail_to_save(patch)
        run(tmp_path, cache="none")
    steps = count_steps(monkeypatch)
    run(tmp_path, cache="none", adapter=OtherSamples)
    assert steps == list(range(STEPS))


def test_tensors_that_are_not_merged_are_part_of_a_runs_identity(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(OSError):
        fail_to_save(patch)
        run(tmp_path, keep=["2.*"])
    steps = count_steps(monkeypatch)
    run(tmp_path, moved(), keep=["2.*"])
    assert steps == list(range(STEPS))


# -- what is not finite is not written ------------------------------------------------


@pytest.mark.parametrize("storage, bound", [("int8", 2e-3), ("int4", 4e-2)])
def test_quantised_task_vectors_learn_nearly_the_same(storage, bound, tmp_path, caplog):
    caplog.set_level("INFO", "fusion_plugins")
    exact = run(tmp_path / "exact").result.applied
    few_bits = run(tmp_path / "few", task_vector_dtype=storage)
    assert 0 < (few_bits.result.applied - exact).abs().max() < bound
    assert f"Task vectors in {storage} put the merged weights off by" in few_bits.card
    assert (
        few_bits.card.count("Task vectors in") == caplog.text.count("vectors in") == 1
    )
    assert "Memory: base" in caplog.text


def half(size: float) -> dict:
    """Float16 models whose merge has numbers of about 100 times `size`."""
    models = toy_models()
    for name, model in models.items():
        model[0].weight.data.fill_(size if name != "_pretrained_" else 1.0)
        model.half()
    return models


DIVERGING = {"alpha": 1.0, "lr": 1e12, "iterations": 50, "granularity": "row"}
NOT_FINITE = {
    "overflow": (
        {"models": half(6e4), "steps": 0, "init": 1.0},
        ValueError,
        r"The merged tensor '0.weight' holds NaN or Inf in torch.float16. Lower",
    ),
    "float16 task vectors": (
        {"steps": 0, "init": 10, "task_vector_dtype": "float16", "models": half(6e4)},
        ValueError,
        "The merged tensor '0.weight' holds NaN or Inf in torch.float16",
    ),
    "overflow while learning": (
        {"models": half(6e4), "init": 1.0},
        AdaptationDiverged,
        r"\['one', 'two', 'three'\] is NaN or Inf at step 0.*Lower lr",
    ),
    "lr": (
        {"preset": "fusion_bench", "lr": 1e30},
        AdaptationDiverged,
        r"is NaN or Inf at step 1.*Lower lr",
    ),
    "disentangle": (
        {"disentangle": DIVERGING},
        ValueError,
        "AWD diverged: lr=1e[+]12 is too long a step for granularity 'row'",
    ),
}


@pytest.mark.parametrize("kind", NOT_FINITE)
def test_nothing_is_written_of_a_run_that_is_not_finite(kind, tmp_path):
    options, error, message = NOT_FINITE[kind]
    with pytest.raises(error, match=message):
        run(tmp_path, **({"steps": 4, "checkpoint_every": 100} | options))
    assert written(tmp_path) == ["lock"] * (tmp_path / "kept").is_dir() * len(
        list((tmp_path / "kept").iterdir())
    )


def test_half_models_that_do_not_overflow_are_merged(tmp_path):
    assert torch.isfinite(run(tmp_path, half(3.0), steps=0).merged[0].weight).all()


def rewritten(path: Path, change) -> None:
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)


def put(where: str, name: str, value):
    def change(tensors, metadata):
        if where == "tensors":
            tensors[name].view(-1)[3] = value
        else:
            metadata[name] = value

    return change


def cut(tensors, metadata):
    tensors["applied"] = tensors["applied"][:, 1:].clone()


DAMAGED = {
    "nan": (put("tensors", "raw", float("nan")), "holds NaN or Inf"),
    "inf": (put("tensors", "applied", float("inf")), "holds NaN or Inf"),
    "no json": (put("metadata", "tasks", "[1,"), "is damaged"),
    "a number": (put("metadata", "layers", "5"), "is damaged"),
    "no mapping": (put("metadata", "meaning", "[1, 2]"), "is damaged"),
    "no names": (
        lambda tensors, metadata: metadata.clear(),
        "holds .*, not coefficients with",
    ),
    "fewer": (cut, "is damaged: .*5.* numbers for 3 tasks and 6 layers"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_coefficients_are_refused_by_their_file(damage, tmp_path):
    change, message = DAMAGED[damage]
    run(tmp_path, steps=0)
    path = tmp_path / "log" / "coefficients.safetensors"
    rewritten(path, change)
    again = on_cpu(AdaMergingAlgorithm(coefficients=str(path)), tmp_path / "again")
    with pytest.raises(ValueError, match=f"coefficients: {path} {message}") as error:
        again.run(toy_models())
    assert "\n" not in str(error.value) and written(tmp_path / "again") == []


# -- what a user gave is checked before anything is read -------------------------------

NAMES = ["", "training", "keys", "type", "a.b", "a" * 300, ("a/b", "a_b"), ("A", "a")]


def named(names) -> dict:
    names = (names, "other") if isinstance(names, str) else names
    models = toy_models()
    return {"_pretrained_": models["_pretrained_"]} | dict(
        zip(names, (models["one"], models["two"]), strict=True)
    )


@pytest.mark.parametrize("names", NAMES, ids=str)
@pytest.mark.parametrize("kind", [AdaMergingAlgorithm, AWDAlgorithm])
def test_task_names_are_refused_before_data_are_read(kind, names, tmp_path):
    pool = OwnHeadsPool(named(names))
    adapter = OwnHeads(pool)
    with pytest.raises(ValueError, match="a task has the name .*Rename it in the pool"):
        if kind is AWDAlgorithm:
            on_cpu(AWDAlgorithm(), tmp_path / "log").run(pool)
        else:
            algorithm(tmp_path).run(pool, adapter)
    assert adapter.read == [] and written(tmp_path) == []


def test_names_that_are_no_modules_do_for_pools_without_own_heads(tmp_path):
    assert run(tmp_path, named("a.b"), steps=0).result.tasks == ("a.b", "other")


def make_file(path: Path) -> None:
    path.write_text("")


def make_link(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def forbid(path: Path) -> None:
    path.mkdir()


PLACES = {
    make_file: "is a file, expected a folder",
    make_link: "is a link to nothing",
    forbid: r"cannot be written into \(Permission denied\). Give another folder",
}


@pytest.mark.parametrize("make", PLACES)
@pytest.mark.parametrize("option, name", [("checkpoint_dir", "kept"), ("log folder", "log")])  # fmt: skip
def test_folders_are_checked_before_data_are_read(
    option, name, make, tmp_path, monkeypatch
):
    make(tmp_path / name)
    touch = Path.touch

    def denied(path, *arguments, **options):
        if make is forbid and path.parent == tmp_path / name:
            raise PermissionError(13, "Permission denied")
        return touch(path, *arguments, **options)

    monkeypatch.setattr(Path, "touch", denied)
    adapter = Adapter(BaseModelPool(toy_models()))
    with pytest.raises(ValueError, match=f"{option}: .*{name} {PLACES[make]}") as error:
        algorithm(tmp_path).run(toy_models(), adapter)
    assert "\n" not in str(error.value) and adapter.read == []


def test_a_path_without_a_checkpoint_is_refused_before_data_are_read(tmp_path):
    adapter = Adapter(BaseModelPool(toy_models()))
    with pytest.raises(ValueError, match="resume: nonexistent holds no checkpoint"):
        algorithm(tmp_path, resume="nonexistent").run(toy_models(), adapter)
    assert adapter.read == []


FOREIGN = {
    '{"step": 4}': r"is damaged: no \['extra', 'identity'\]",
    "[1]": "is damaged",
    "{": "is damaged",
    '{"format": 2, "steps": 4}': "has format 2, this version reads 1. Update",
}


@pytest.mark.parametrize("text", FOREIGN)
def test_foreign_checkpoints_are_refused_before_data_are_read(text, tmp_path):
    (tmp_path / "state.json").write_text(text)
    adapter = Adapter(BaseModelPool(toy_models()))
    message = f"The checkpoint {tmp_path} {FOREIGN[text]}"
    with pytest.raises(ValueError, match=message) as error:
        algorithm(tmp_path, resume=str(tmp_path)).run(toy_models(), adapter)
    assert "\n" not in str(error.value) and adapter.read == []


# -- what was learned is kept until it is saved ---------------------------------------


def test_a_run_whose_results_could_not_be_saved_only_saves(unsaved, monkeypatch):
    steps = count_steps(monkeypatch)
    again = run(unsaved)
    assert steps == [] and checkpoints(unsaved) == []
    whole = run(unsaved / "whole")
    assert len(steps) == STEPS and torch.equal(again.result.raw, whole.result.raw)
    assert same_bits(again.merged.state_dict(), whole.merged.state_dict())
    assert len(again.history) == STEPS


def test_a_log_folder_that_became_a_file_costs_nothing(tmp_path, monkeypatch):
    save = learned.save_results

    def replaced(folder, *arguments):
        shutil.rmtree(folder)
        folder.write_text("")
        save(folder, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Exception, match="log"):
        patch.setattr(learned, "save_results", replaced)
        run(tmp_path)
    (tmp_path / "log").unlink()
    steps = count_steps(monkeypatch)
    run(tmp_path)
    assert steps == [] and set(RESULTS) <= set(written(tmp_path))


def test_a_damaged_newest_checkpoint_falls_back(unsaved, monkeypatch, caplog):
    state = checkpoints(unsaved)[-1] / "state.safetensors"
    data = bytearray(state.read_bytes())
    data[-5] ^= 1
    state.write_bytes(bytes(data))
    steps = count_steps(monkeypatch)
    again = run(unsaved)
    assert steps == [6, 7]
    assert f"The checkpoint {state.parent} is damaged" in caplog.text
    assert torch.equal(again.result.raw, run(unsaved / "whole").result.raw)


# -- two at once ----------------------------------------------------------------------


def test_the_same_run_twice_at_once_is_refused_in_one_line(tmp_path, monkeypatch):
    save, found = learned.save_results, []

    def second(*arguments):
        with monkeypatch.context() as patch, pytest.raises(ValueError) as error:
            patch.setattr(learned, "save_results", save)
            run(tmp_path)
        found.append(str(error.value))
        save(*arguments)

    monkeypatch.setattr(learned, "save_results", second)
    first = run(tmp_path)
    (message,) = found
    assert message.startswith("checkpoint_dir: another run with the same settings is")
    assert "\n" not in message
    assert json.loads((tmp_path / "log" / "coefficients.json").read_text())
    assert len(first.history) == STEPS and checkpoints(tmp_path) == []


def test_two_runs_with_one_log_folder_write_into_two(tmp_path):
    one, other = run(tmp_path, seed=1), run(tmp_path, seed=2)
    child = os.fork()
    if not child:
        try:
            run(tmp_path, seed=3)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    folders = [tmp_path / name for name in ("log", "log-2", "log-3")]
    raw = [load_file(f / "coefficients.safetensors")["raw"] for f in folders]
    assert torch.equal(raw[0], one.result.raw) and torch.equal(raw[1], other.result.raw)
    assert not torch.equal(raw[2], raw[0]) and not torch.equal(raw[2], raw[1])
