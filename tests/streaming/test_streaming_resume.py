"""What an interrupted run keeps, and what is never mixed; full disks."""

import logging
import os
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_llamas import merge, merged_files, replace_weights, shard_files

from fusion_plugins.common.identity import file_identity
from fusion_plugins.streaming import algorithm as streaming_algorithm
from fusion_plugins.streaming import merge as streaming_merge
from fusion_plugins.streaming.output import INDEX, OutputFolder
from fusion_plugins.streaming.shards import Shard, ShardWriter, plan_shards
from fusion_plugins.task_vectors.files import TensorSpec

AWD = {"alpha": 1e-3, "lr": 0.1, "iterations": 30}


class Interrupted(Exception):
    pass


def interrupt_after(monkeypatch, shards: int) -> None:
    """Let the given number of shards be finished, then fail."""
    finish, done = ShardWriter.finish, []

    def finishing(self):
        if len(done) == shards:
            raise Interrupted
        done.append(self.shard.file)
        finish(self)

    monkeypatch.setattr(ShardWriter, "finish", finishing)


@pytest.mark.parametrize("base", ["task_arithmetic", "ties"])
def test_an_interrupted_run_continues(llamas, tmp_path, monkeypatch, base):
    from fusion_bench.method import TaskArithmeticAlgorithm, TiesMergingAlgorithm

    method = {
        "task_arithmetic": TaskArithmeticAlgorithm(scaling_factor=0.3),
        "ties": TiesMergingAlgorithm(0.3, 20, [], "sum"),
    }[base]
    options = AWD | {"base": method}
    merge(llamas, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(Interrupted):
            merge(llamas, tmp_path / "parts", **options)
    files = shard_files(tmp_path / "parts")
    assert len(files) == 2 and not (tmp_path / "parts" / INDEX).exists()
    times = [file.stat().st_mtime_ns for file in files]

    def again(*args, **kwargs):
        raise AssertionError("what the first run found out should be kept")

    with monkeypatch.context() as patch:
        patch.setattr(streaming_algorithm, "gram_matrices", again)
        patch.setattr("fusion_plugins.streaming.rules.ties_statistics", again)
        merge(llamas, tmp_path / "parts", **options)
    assert [file.stat().st_mtime_ns for file in files] == times
    for file in shard_files(tmp_path / "whole"):
        assert (tmp_path / "parts" / file.name).read_bytes() == file.read_bytes()
    assert (tmp_path / "parts" / INDEX).exists()


def test_a_complete_merge_is_not_repeated(llamas, tmp_path, monkeypatch):
    first = merge(llamas, tmp_path, **AWD).state_dict()
    before = [file.stat().st_mtime_ns for file in shard_files(tmp_path)]
    monkeypatch.setattr(streaming_algorithm, "write_shards", None)
    again = merge(llamas, tmp_path, **AWD).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert [file.stat().st_mtime_ns for file in shard_files(tmp_path)] == before


@pytest.mark.parametrize("damage", ["truncated", "one bit"])
def test_a_damaged_shard_is_written_again(llamas, tmp_path, caplog, damage):
    merge(llamas, tmp_path, iterations=0)
    file = shard_files(tmp_path)[1]
    content = file.read_bytes()
    file.write_bytes(content[:-8] if damage == "truncated" else flipped(content))
    with caplog.at_level(logging.WARNING, "fusion_plugins"):
        merge(llamas, tmp_path, iterations=0)
    assert f"{file} has changed since it was written; it is made again." in caplog.text
    assert file.read_bytes() == content


def flipped(content: bytes) -> bytes:
    """With another last bit: the smallest change of the last number."""
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("name", ["gram", "ties"])
def test_damaged_statistics_are_counted_again(llamas, tmp_path, monkeypatch, name):
    from fusion_bench.method import TiesMergingAlgorithm

    options = AWD | {"base": TiesMergingAlgorithm(0.3, 20, [], "sum")}
    merge(llamas, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(Interrupted):
            merge(llamas, tmp_path / "parts", **options)
    file = tmp_path / "parts" / ".merge" / f"{name}.safetensors"
    file.write_bytes(flipped(file.read_bytes()))
    merge(llamas, tmp_path / "parts", **options)
    for file in shard_files(tmp_path / "whole"):
        assert (tmp_path / "parts" / file.name).read_bytes() == file.read_bytes()


def test_an_interrupted_merge_goes_on_with_the_same_models_only(
    llamas, tmp_path, monkeypatch
):
    """In another order the inner products would be those of other tasks."""
    folders = {name: str(tmp_path / name) for name in llamas}
    for name, folder in llamas.items():
        shutil.copytree(folder, folders[name])
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(Interrupted):
            merge(folders, tmp_path / "out", **AWD)
    order = ["_pretrained_", "code", "math", "chat"]
    message = (
        "other inputs .order of models: .*'math', 'code'.* there, .*'code', 'math'"
    )
    with pytest.raises(ValueError, match=message):
        merge({name: folders[name] for name in order}, tmp_path / "out", **AWD)
    swapped = folders | {"math": folders["code"], "code": folders["math"]}
    with pytest.raises(ValueError, match="other inputs .(code|math): "):
        merge(swapped, tmp_path / "out", **AWD)
    merge(folders, tmp_path / "out", **AWD)


@pytest.mark.parametrize("name", ["_pretrained_", "math"])
@pytest.mark.parametrize("what", ["weights", "config"])
def test_models_changed_in_place_are_noticed(llamas, tmp_path, name, what):
    """Same names, same sizes, same times of change."""
    folders = {name: str(tmp_path / name) for name in llamas}
    for copied, folder in llamas.items():
        shutil.copytree(folder, folders[copied])
    merge(folders, tmp_path / "out", iterations=0)
    file = Path(folders[name]) / "config.json"
    file = file if what == "config" else shard_files(Path(folders[name]))[0]
    stat, content = file.stat(), file.read_bytes()
    file.write_bytes(
        content.replace(b"silu", b"gelu") if what == "config" else flipped(content)
    )
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_size == stat.st_size and file.read_bytes() != content
    said = f"{name}: {file.name} has another content or time of change"
    with pytest.raises(ValueError, match=f"a merge with other inputs .{said}.. Ch"):
        merge(folders, tmp_path / "out", iterations=0)


def test_a_file_is_known_by_its_content_where_times_say_nothing(llamas, monkeypatch):
    file, real = shard_files(Path(llamas["math"]))[0], Path.stat
    times = {"st_mtime_ns": 0, "st_ctime_ns": 0}

    def timeless(self, **options):
        size = real(self, **options).st_size
        return SimpleNamespace(st_size=size, **times)

    monkeypatch.setattr(Path, "stat", timeless)
    before, content = file_identity(file), file.read_bytes()
    try:
        file.write_bytes(flipped(content))
        assert file_identity(file) != before
    finally:
        file.write_bytes(content)
    assert file_identity(file) == before


def test_models_that_change_while_they_merge_give_no_result(
    llamas, tmp_path, monkeypatch
):
    folders = llamas | {"math": str(tmp_path / "math")}
    shutil.copytree(llamas["math"], folders["math"])
    real = streaming_algorithm.write_shards

    def changing(*args, **options):
        real(*args, **options)
        file = shard_files(tmp_path / "math")[0]
        file.write_bytes(flipped(file.read_bytes()))

    monkeypatch.setattr(streaming_algorithm, "write_shards", changing)
    with pytest.raises(ValueError, match="files of model 'math' changed while"):
        merge(folders, tmp_path / "out", iterations=0)
    assert not (tmp_path / "out" / INDEX).exists()


def test_files_and_models_of_one_merge_only_are_named(llamas, tmp_path):
    folders = llamas | {"math": str(tmp_path / "math")}
    shutil.copytree(llamas["math"], folders["math"])
    merge(folders, tmp_path / "out", iterations=0)
    fewer = {name: folder for name, folder in folders.items() if name != "chat"}
    message = r"inputs .chat: model-\d+-of-\d+.safetensors only there."
    with pytest.raises(ValueError, match=message):
        merge(fewer, tmp_path / "out", iterations=0)
    replace_weights(folders["math"], merged_files(Path(folders["math"])))
    message = r"inputs .math: model-\d+-of-\d+.safetensors only there."
    with pytest.raises(ValueError, match=message):
        merge(folders, tmp_path / "out", iterations=0)


@pytest.mark.parametrize("what", ["options", "inputs"])
def test_another_merge_is_refused_or_replaced(llamas, tmp_path, what):
    folders = dict(llamas)
    folders["math"] = str(tmp_path / "math")
    shutil.copytree(llamas["math"], folders["math"])
    out, options = tmp_path / "out", {"iterations": 0}
    merge(folders, out, **options)
    if what == "options":
        options = {"iterations": 0, "keep": ["*norm*"]}
        message = "a merge with other options .keep: \\[\\] there, .'\\*norm\\*'. here"
    else:
        os.utime(shard_files(Path(folders["math"]))[0])
        message = "a merge with other inputs .math: "
    with pytest.raises(ValueError, match=message + ".*method.overwrite=true"):
        merge(folders, out, **options)
    merge(folders, out, overwrite=True, **options)
    merge(folders, tmp_path / "fresh", **options)
    fresh, replaced = merged_files(tmp_path / "fresh"), merged_files(out)
    assert all(torch.equal(fresh[name], replaced[name]) for name in fresh)


def test_what_an_interrupted_run_left_can_be_replaced(llamas, tmp_path, monkeypatch):
    replace, first = os.replace, threading.Lock()

    def dies_after_one(source, target):
        # Whichever shard's thread ends first.
        if Path(target).name.startswith("model-") and not first.acquire(False):
            raise Interrupted
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies_after_one)
        with pytest.raises(Interrupted):
            merge(llamas, tmp_path / "out", iterations=0)
    assert len(shard_files(tmp_path / "out")) == 1
    options = {"iterations": 0, "keep": ["*norm*"]}
    merge(llamas, tmp_path / "out", overwrite=True, **options)
    merge(llamas, tmp_path / "fresh", **options)
    for file in shard_files(tmp_path / "fresh"):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_weights_of_something_else_are_never_touched(llamas, tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"mine")
    with pytest.raises(ValueError, match="no part of a merge: .'pytorch_model.bin'"):
        merge(llamas, tmp_path, iterations=0, overwrite=True)
    assert (tmp_path / "pytorch_model.bin").read_bytes() == b"mine"


def test_two_runs_do_not_write_into_one_folder(llamas, tmp_path):
    with OutputFolder(tmp_path, {}, {}):
        with pytest.raises(ValueError, match="Another run writes to"):
            merge(llamas, tmp_path, iterations=0)
    merge(llamas, tmp_path, iterations=0)


# The disk


def test_a_disk_too_small_is_noticed_before_the_merge(llamas, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ValueError, match="The merge needs .* has 0.0 GB free"):
        merge(llamas, tmp_path / "out", iterations=0)
    assert not shard_files(tmp_path / "out")


def test_a_disk_that_fills_up_says_how_to_go_on(tmp_path):
    shard = Shard("a.safetensors", {"w": TensorSpec((4,), torch.float32)})
    writer = ShardWriter(shard, tmp_path / "a.part")
    writer.abandon()
    writer._stream = open("/dev/full", "wb", buffering=0)
    with pytest.raises(OSError, match="is full. Free space and start the same command"):
        writer.write("w", 0, torch.zeros(4))
    writer.abandon()


def test_tensors_larger_than_a_shard_get_one_of_their_own():
    spec = TensorSpec((10,), torch.float32)
    shards = plan_shards({"a": spec, "b": spec, "c": spec}, 80)
    assert [list(shard.specs) for shard in shards] == [["a", "b"], ["c"]]
    shards = plan_shards({"a": spec, "b": spec}, 1)
    assert [list(shard.specs) for shard in shards] == [["a"], ["b"]]


def test_a_shard_that_misses_rows_is_never_given_its_name(
    llamas, tmp_path, monkeypatch
):
    def forget(task_vectors, rule, write, keys, bar):
        real(task_vectors, rule, write, keys[1:], bar)

    real = streaming_merge.apply_rule
    monkeypatch.setattr(streaming_merge, "apply_rule", forget)
    with pytest.raises(RuntimeError, match="lacks rows although all were merged"):
        merge(llamas, tmp_path, iterations=0)
    assert not (tmp_path / INDEX).exists()


def test_after_an_error_no_thread_works_on(llamas, tmp_path, monkeypatch):
    """Behind the caller's back it would write into a folder that others may use."""
    real, seen = ShardWriter.write, []

    def failing(self, name, first_row, rows):
        seen.append(name)
        if len(seen) == 2:
            raise Interrupted
        time.sleep(0.2 if len(seen) > 2 else 0)  # room to hear of the error
        return real(self, name, first_row, rows)

    monkeypatch.setattr(ShardWriter, "write", failing)
    torch.set_num_threads(2)
    try:
        with pytest.raises(Interrupted):
            merge(llamas, tmp_path, iterations=0)
    finally:
        torch.set_num_threads(1)
    count = len(seen)
    assert count < 6, "the other thread went on"
    time.sleep(0.5)
    assert len(seen) == count
