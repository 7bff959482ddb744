"""What is written: a model folder like the base's."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from fusion_bench.modelpool import CausalLMPool
from safetensors import safe_open
from tiny_llamas import (
    merge,
    merged_files,
    replace_weights,
    save_family,
    shard_files,
)
from torch import nn
from transformers import AutoModelForCausalLM

from fusion_plugins import AWDAlgorithm
from fusion_plugins.streaming.output import INDEX

AWD = {"alpha": 1e-3, "lr": 0.1, "iterations": 30}


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
    # Nothing of the run is left but what says which merge this is.
    assert (tmp_path / "merge.json").is_file() and not (tmp_path / ".merge").exists()


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


def say_tied(folder: str) -> None:
    file = Path(folder) / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "tie_word_embeddings": True}))


decided_by_files = pytest.mark.skipif(
    find_spec("transformers.conversion_mapping") is None,
    reason="transformers 4 ties what the config says, whatever the files hold",
)


@decided_by_files
@pytest.mark.parametrize("said_by", [["_pretrained_", "math"], ["math"]])
def test_heads_stored_apart_are_merged_apart_whatever_configs_say(
    llamas, tmp_path, said_by
):
    """Training often leaves the flag as it was."""
    folders = {}
    for name in ("_pretrained_", "math"):
        folders[name] = str(shutil.copytree(llamas[name], tmp_path / name))
        if name in said_by:
            say_tied(folders[name])
    held = AWDAlgorithm(iterations=0).run(folders).state_dict()
    merge(folders, tmp_path / "out", iterations=0)
    got = merged_files(tmp_path / "out")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        torch.testing.assert_close(held[name], got[name], rtol=0, atol=1e-6)


@decided_by_files
def test_an_expert_that_trained_tied_embeddings_apart_is_refused(tied_llamas, tmp_path):
    folders = {"_pretrained_": tied_llamas["_pretrained_"]}
    folders["math"] = str(tmp_path / "math")
    store_tied_twice(tied_llamas["math"], tmp_path / "math")
    tensors = merged_files(tmp_path / "math")
    tensors["lm_head.weight"] += 1
    replace_weights(folders["math"], tensors)
    with pytest.raises(ValueError, match="holds different values in"):
        merge(folders, tmp_path / "out", iterations=0)


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
