"""What is written, what an interrupted run keeps, and what is never mixed."""

import json
import os
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from fusion_bench.modelpool import CausalLMPool
from safetensors import safe_open
from tiny_llamas import make_llama, merge, merged_files, save_family
from torch import nn
from transformers import AutoModelForCausalLM

from fusion_plugins import AWDAlgorithm
from fusion_plugins.streaming import algorithm as streaming_algorithm
from fusion_plugins.streaming import merge as streaming_merge
from fusion_plugins.streaming.output import INDEX, OutputFolder
from fusion_plugins.streaming.shards import Shard, ShardWriter, plan_shards
from fusion_plugins.task_vectors.checkpoint import TensorSpec

AWD = {"alpha": 1e-3, "lr": 0.1, "iterations": 30}


def shard_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_the_result_is_a_model_folder_like_the_base(llamas, tmp_path):
    merge(llamas, tmp_path, iterations=0)
    files, base = shard_files(tmp_path), Path(llamas["_pretrained_"])
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / INDEX).read_text())
    held = {}
    for file in files:
        with safe_open(str(file), "pt") as opened:
            held |= dict.fromkeys(opened.keys(), file.name)
            assert opened.metadata() == {"format": "pt"}
    assert index["weight_map"] == held
    tensors = merged_files(tmp_path)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == json.loads((base / "config.json").read_text())
    assert "_pretrained_" in (tmp_path / "tokenizer_config.json").read_text()
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, tensors[name])
    # Nothing of the run is left but its manifest and lock.
    private = {file.name for file in (tmp_path / ".merge").iterdir()}
    assert private <= {"manifest.json", "lock"}


def test_the_returned_model_computes_and_can_be_saved_elsewhere(llamas, tmp_path):
    model = merge(llamas, tmp_path / "out", iterations=0)
    assert isinstance(model, nn.Module) and type(model).__name__ == "LlamaForCausalLM"
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(ids).logits, again(ids).logits)
    pool = CausalLMPool(llamas, tokenizer=None)
    pool.save_model(model, str(tmp_path / "copy"))
    copy = AutoModelForCausalLM.from_pretrained(tmp_path / "copy")
    assert torch.equal(copy(ids).logits, again(ids).logits)


def test_saving_into_its_own_folder_keeps_the_files(llamas, tmp_path):
    model = merge(llamas, tmp_path, iterations=0)
    before = {file: file.read_bytes() for file in shard_files(tmp_path)}
    model.save_pretrained(tmp_path)
    assert {file: file.read_bytes() for file in shard_files(tmp_path)} == before
    model.lm_head.weight.data[0, 0] += 1
    with pytest.raises(
        ValueError, match="'lm_head.weight' is no longer as it was merged"
    ):
        model.save_pretrained(str(tmp_path))
    model.save_pretrained(tmp_path / "changed")
    changed = merged_files(tmp_path / "changed")["lm_head.weight"]
    assert changed[0, 0] == merged_files(tmp_path)["lm_head.weight"][0, 0] + 1


def test_the_pools_own_tokenizer_is_copied(llamas, tmp_path):
    pool = CausalLMPool(llamas, tokenizer=llamas["math"])
    merge(pool, tmp_path, iterations=0)
    assert '"math"' in (tmp_path / "tokenizer_config.json").read_text()


def test_the_config_names_the_dtype_of_the_result(llamas, tmp_path):
    merge(llamas, tmp_path, iterations=0, dtype="bfloat16")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"
    assert {t.dtype for t in merged_files(tmp_path).values()} == {torch.bfloat16}


def test_tied_embeddings_stay_tied(tied_llamas, tmp_path):
    model = merge(tied_llamas, tmp_path, iterations=0)
    names = set(merged_files(tmp_path))
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_base_that_stores_both_tied_names_gives_one(tied_llamas, tmp_path):
    folders = dict(tied_llamas)
    for name in ("_pretrained_", "math"):
        folders[name] = str(tmp_path / name)
        store_tied_twice(tied_llamas[name], Path(folders[name]))
    merge(tied_llamas, tmp_path / "once", iterations=0)
    merge(folders, tmp_path / "twice", iterations=0)
    once, twice = merged_files(tmp_path / "once"), merged_files(tmp_path / "twice")
    assert set(once) == set(twice)
    assert all(torch.equal(once[name], twice[name]) for name in once)


def store_tied_twice(source: str, target: Path) -> None:
    from safetensors.torch import save_file

    tensors = merged_files(Path(source))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    target.mkdir()
    save_file(tensors, str(target / "model.safetensors"), {"format": "pt"})
    shutil.copy(Path(source) / "config.json", target)


def test_a_tied_expert_of_an_untied_base_counts_in_both_places(llamas, tmp_path):
    folders = save_family(tmp_path / "tied", tied=True, tasks=("math",))
    mixed = {"_pretrained_": llamas["_pretrained_"], "math": folders["math"]}
    merge(mixed, tmp_path / "out", iterations=0)
    got, base = merged_files(tmp_path / "out"), merged_files(
        Path(mixed["_pretrained_"])
    )
    shared = merged_files(Path(mixed["math"]))["model.embed_tokens.weight"]
    want = base["lm_head.weight"] + 0.3 * (shared - base["lm_head.weight"])
    torch.testing.assert_close(got["lm_head.weight"], want, rtol=0, atol=1e-6)


# Vocabularies of other sizes


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def vocabularies(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("vocabularies")
    sizes = {"math": 60, "code": 69}
    return save_family(root, tied=request.param, vocabulary=sizes)


def test_other_vocabularies_are_refused_with_the_way_out(vocabularies, tmp_path):
    message = (
        "expert 'math' has a vocabulary of 60 tokens, the base .* one of 64 .*"
        "set method.vocabulary=common_rows"
    )
    with pytest.raises(ValueError, match=message):
        merge(vocabularies, tmp_path / "out", iterations=0)
    assert not (tmp_path / "out").exists()


def test_common_rows_are_merged_and_others_are_the_bases(vocabularies, tmp_path):
    model = merge(
        vocabularies, tmp_path / "out", iterations=0, vocabulary="common_rows"
    )
    got = merged_files(tmp_path / "out")["model.embed_tokens.weight"]
    assert model.config.vocab_size == len(got) == 64
    tensors = [
        merged_files(Path(folder))["model.embed_tokens.weight"]
        for folder in vocabularies.values()
    ]
    want = tensors[0].clone()
    for expert in tensors[1:]:  # math has 60 rows, code 69
        rows = min(len(expert), 64)
        want[:rows] += 0.3 * (expert[:rows] - tensors[0][:rows])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_awd_sees_no_change_in_rows_an_expert_lacks(vocabularies, tmp_path):
    options = AWD | {"vocabulary": "common_rows"}
    got = merge(vocabularies, tmp_path / "out", **options).state_dict()
    models = {
        n: AutoModelForCausalLM.from_pretrained(f) for n, f in vocabularies.items()
    }
    base = models["_pretrained_"]
    for name, model in models.items():
        models[name] = padded = deepcopy(base)
        for key, value in model.state_dict().items():
            target = padded.state_dict()[key]
            rows = min(len(value), len(target))
            target[:rows] = value[:rows]
    want = AWDAlgorithm(**AWD).run(models).state_dict()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-6)


def test_rows_no_expert_has_stay_exactly_the_bases(tmp_path):
    folders = save_family(tmp_path, tasks=("math",), vocabulary={"math": 50})
    base = make_llama()
    base.save_pretrained(folders["_pretrained_"])  # float32
    math = AutoModelForCausalLM.from_pretrained(folders["math"]).bfloat16()
    math.save_pretrained(folders["math"], max_shard_size="8KB")
    options = {"iterations": 0, "vocabulary": "common_rows", "dtype": "float32"}
    merge(folders, tmp_path / "out", **options)
    got = merged_files(tmp_path / "out")["lm_head.weight"]
    assert torch.equal(got[50:], base.lm_head.weight[50:])
    assert not torch.equal(got[:50], base.lm_head.weight[:50])


# Interruption


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


def test_a_damaged_shard_is_written_again(llamas, tmp_path):
    merge(llamas, tmp_path, iterations=0)
    file = shard_files(tmp_path)[1]
    content = file.read_bytes()
    file.write_bytes(content[:-8])
    merge(llamas, tmp_path, iterations=0)
    assert file.read_bytes() == content


@pytest.mark.parametrize("what", ["options", "inputs"])
def test_another_merge_is_refused_or_replaced(llamas, tmp_path, what):
    folders = dict(llamas)
    folders["math"] = str(tmp_path / "math")
    shutil.copytree(llamas["math"], folders["math"])
    out, options = tmp_path / "out", {"iterations": 0}
    merge(folders, out, **options)
    extra = out / "model-99999-of-99999.safetensors"
    if what == "options":
        options = {"iterations": 0, "keep": ["*norm*"]}
        message = "a merge with other options .keep: None there, .'\\*norm\\*'. here"
    else:
        os.utime(shard_files(Path(folders["math"]))[0])
        message = "a merge with other inputs .math: "
    with pytest.raises(ValueError, match=message + ".*method.overwrite=true"):
        merge(folders, out, **options)
    merge(folders, out, overwrite=True, **options)
    merge(folders, tmp_path / "fresh", **options)
    fresh, replaced = merged_files(tmp_path / "fresh"), merged_files(out)
    assert all(torch.equal(fresh[name], replaced[name]) for name in fresh)
    assert not extra.exists()


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
    writer = ShardWriter(shard, tmp_path / "part", tmp_path / "a.safetensors")
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
