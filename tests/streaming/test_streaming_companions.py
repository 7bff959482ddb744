"""Names of tensors, configs and tokenizers: as in memory, or said."""

import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
from fusion_bench.modelpool import CausalLMPool
from safetensors.torch import save_file
from tiny_llamas import merge, merged_files, replace_weights
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)
from transformers.convert_slow_tokenizer import import_protobuf

from fusion_plugins import AWDAlgorithm


@pytest.fixture
def folders(llamas, tmp_path) -> dict[str, str]:
    """A copy that may be written into."""
    for name, folder in llamas.items():
        shutil.copytree(folder, tmp_path / "models" / name)
    return {name: str(tmp_path / "models" / name) for name in llamas}


# Names


def hub_style(tensors: dict, prefix: str, masks: bool) -> dict:
    """As old files on hubs: other prefixes, and buffers that the class computes."""
    renamed = {}
    for name, value in tensors.items():
        renamed[name.replace("transformer.", prefix, 1)] = value
    if masks:
        for layer in range(2):
            mask = torch.ones(1, 1, 32, 32, dtype=torch.uint8).tril()
            renamed[f"{prefix}h.{layer}.attn.bias"] = mask
            renamed[f"{prefix}h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return renamed


@pytest.mark.parametrize(
    "base, expert",
    [("", "transformer."), ("transformer.", ""), ("", ""), ("transformer.",) * 2],
)
@pytest.mark.parametrize("masks", [(True, False), (False, True), (True, True)])
def test_gpt2_files_are_streamed_as_they_merge_in_memory(tmp_path, base, expert, masks):
    config = GPT2Config(vocab_size=40, n_positions=32, n_embd=8, n_layer=2, n_head=2)
    pool = {}
    for seed, name in enumerate(["_pretrained_", "math", "code"]):
        torch.manual_seed(seed)
        pool[name] = str(tmp_path / name)
        GPT2LMHeadModel(config).save_pretrained(pool[name])
        of_base = name == "_pretrained_"
        prefix, with_masks = (base if of_base else expert), masks[not of_base]
        tensors = hub_style(merged_files(pool[name]), prefix, with_masks)
        replace_weights(pool[name], tensors)
    got = merge(pool, tmp_path / "out", alpha=1e-3, iterations=30).state_dict()
    want = AWDAlgorithm(alpha=1e-3, iterations=30).run(
        CausalLMPool(pool, tokenizer=None)
    )
    assert set(got) == set(want.state_dict())
    assert all(torch.equal(got[n], v) for n, v in want.state_dict().items())
    names = set(merged_files(tmp_path / "out"))
    assert names == set(want.state_dict()) - {"lm_head.weight"}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_wrappers_leave_no_trace(folders, tmp_path, prefix):
    want = merge(folders, tmp_path / "plain", iterations=0).state_dict()
    for name in ("_pretrained_", "code"):
        tensors = merged_files(folders[name])
        replace_weights(folders[name], {prefix + n: t for n, t in tensors.items()})
    got = merge(folders, tmp_path / "wrapped", iterations=0).state_dict()
    assert all(torch.equal(got[name], value) for name, value in want.items())


def test_a_subfolder_is_the_one_that_is_merged(folders, tmp_path):
    nested = Path(folders["math"]).rename(tmp_path / "math").parent / "nested"
    nested.mkdir()
    (tmp_path / "math").rename(nested / "step-9")
    source = {"pretrained_model_name_or_path": str(nested), "subfolder": "step-9"}
    pool = CausalLMPool(folders | {"math": source}, tokenizer=None)
    got = merge(pool, tmp_path / "out", iterations=0).state_dict()
    plain = folders | {"math": str(nested / "step-9")}
    want = merge(plain, tmp_path / "plain", iterations=0).state_dict()
    assert all(torch.equal(got[name], value) for name, value in want.items())


@pytest.mark.parametrize("sharded", [True, False])
def test_the_second_form_of_mistrals_models_is_passed_over(folders, tmp_path, sharded):
    want = merge(folders, tmp_path / "plain", iterations=0).state_dict()
    for name in ("_pretrained_", "code"):
        tensors = merged_files(folders[name])
        if not sharded:
            replace_weights(folders[name], tensors)
        second = Path(folders[name]) / "consolidated-1.safetensors"
        save_file(tensors, second)
        index = {"weight_map": dict.fromkeys(tensors, second.name)}
        file = second.with_name("consolidated.safetensors.index.json")
        file.write_text(json.dumps(index))
    got = merge(folders, tmp_path / "out", iterations=0).state_dict()
    assert all(torch.equal(got[name], value) for name, value in want.items())


# Configs


@pytest.mark.parametrize(
    "values, said",
    [
        (
            {"rope_theta": 5e5},
            # transformers 5 keeps it among rope_parameters.
            r"rope_[\w.]+=.*\b500000\.0\b.* in its config, the base has .*\b10000\.0\b.*",
        ),
        (
            {"rms_norm_eps": 1e-5},
            "rms_norm_eps=1e-05 in its config, the base has 1e-06",
        ),
        (
            {"hidden_act": "gelu"},
            "hidden_act='gelu' in its config, the base has 'silu'",
        ),
        ({"_name_or_path": "x", "eos_token_id": 5, "torch_dtype": "bfloat16"}, None),
    ],
)
def test_config_values_that_differ_are_said(folders, tmp_path, caplog, values, said):
    for name in folders:  # as transformers 4 writes the base of all angles
        file = Path(folders[name]) / "config.json"
        config = {"rope_theta": 1e4} | json.loads(file.read_text())
        config.pop("rope_parameters", None)
        file.write_text(json.dumps(config | (values if name == "math" else {})))
    with caplog.at_level(logging.WARNING, "fusion_plugins"):
        merge(folders, tmp_path / "out", iterations=0)
    found = [
        r.getMessage() for r in caplog.records if "in its config" in r.getMessage()
    ]
    assert len(found) == (said is not None)
    want = rf"expert 'math' has {said}; the merged model computes with the base's\."
    assert all(re.fullmatch(want, message) for message in found)


# Tokenizers


def save_tokenizer(folder: str | Path, words: int, added: int = 0) -> None:
    vocabulary = {f"w{number}": number for number in range(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.add_tokens([f"added{number}" for number in range(added)])
    assert len(fast) == words + added
    fast.save_pretrained(folder)


def unigram(folder: str, words: int) -> None:
    pieces = [[f"w{number}", -1.0] for number in range(words)]
    content = {"model": {"type": "Unigram", "vocab": pieces}}
    (Path(folder) / "tokenizer.json").write_text(json.dumps(content))


def slow(folder: str, words: int) -> None:
    vocabulary = {f"w{number}": number for number in range(words - 1)}
    (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary))
    (Path(folder) / "added_tokens.json").write_text(json.dumps({"x": words - 1}))


def sentence_pieces(folder: str, words: int) -> None:
    described = import_protobuf()
    bpe = described.TrainerSpec(model_type=described.TrainerSpec.BPE)
    model = described.ModelProto(trainer_spec=bpe)
    for number, piece in enumerate(["<unk>", "<s>", "</s>"]):
        model.pieces.add(piece=piece, score=0.0, type=2 if number == 0 else 3)
    for number in range(words - 3):
        model.pieces.add(piece=chr(0x4E00 + number), score=-float(number))
    (Path(folder) / "tokenizer.model").write_bytes(model.SerializeToString())


def word_pieces(folder: str, words: int) -> None:
    (Path(folder) / "vocab.txt").write_text("\n".join(map(str, range(words))))


SAVERS = [save_tokenizer, unigram, slow, sentence_pieces, word_pieces]


@pytest.mark.parametrize("save", SAVERS)
def test_a_tokenizer_longer_than_the_model_is_refused(folders, tmp_path, save):
    save(folders["_pretrained_"], 64)
    merge(folders, tmp_path / "fits", iterations=0)
    save(folders["_pretrained_"], 66)
    message = "has 66 tokens, the merged model 64 rows.*modelpool.tokenizer=FOLDER"
    with pytest.raises(ValueError, match=message):
        merge(folders, tmp_path / "out", iterations=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("as_object", [False, True])
def test_added_tokens_and_the_pools_tokenizer_count(folders, tmp_path, as_object):
    save_tokenizer(tmp_path / "longer", 63, added=3)
    pool = CausalLMPool(folders, tokenizer=str(tmp_path / "longer"))
    if as_object:
        pool.tokenizer = {
            "_target_": "transformers.AutoTokenizer.from_pretrained",
            "pretrained_model_name_or_path": str(tmp_path / "longer"),
        }
    with pytest.raises(ValueError, match="has 66 tokens, the merged model 64 rows"):
        merge(pool, tmp_path / "out", iterations=0)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "tokenizer.model"])
def test_a_damaged_tokenizer_is_named(folders, tmp_path, name):
    file = Path(folders["_pretrained_"]) / name
    file.write_text("{")
    with pytest.raises(
        ValueError, match=f"{file} is damaged.*save the tokenizer again"
    ):
        merge(folders, tmp_path / "out", iterations=0)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("generation_config.json", ""),
        ("generation_config.json", "[1]"),
        ("generation_config.json", '{"max_new_tokens": '),
        ("preprocessor_config.json", "{"),
        ("special_tokens_map.json", "\x00"),
    ],
)
def test_damaged_files_beside_the_weights_are_named_before_the_merge(
    folders, tmp_path, name, content
):
    file = Path(folders["_pretrained_"]) / name
    file.write_text(content)
    with pytest.raises(ValueError, match=f"{file} is damaged.*save it again"):
        merge(folders, tmp_path / "out", iterations=0)
    assert not (tmp_path / "out").exists()


def test_all_chat_templates_are_copied(folders, tmp_path):
    base = Path(folders["_pretrained_"])
    (base / "chat_template.jinja").write_text("default")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tools.jinja").write_text("tools")
    (base / "checkpoint-3").mkdir()
    (base / "checkpoint-3" / "tokenizer.json").write_text("no companion")
    merge(folders, tmp_path / "out", iterations=0)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "default"
    template = tmp_path / "out" / "additional_chat_templates" / "tools.jinja"
    assert template.read_text() == "tools"
    assert not (tmp_path / "out" / "checkpoint-3").exists()


RARE = ("source.spm", "target.spm", "target_vocab.json", "bpe.codes", "dict.txt")


def test_files_of_rare_tokenizers_are_copied(folders, tmp_path):
    names = (*RARE, "normalizer.json", "entity_vocab.json", "word_shape.json")
    for name in names:
        (Path(folders["_pretrained_"]) / name).write_text("{}")
    merge(folders, tmp_path / "out", iterations=0)
    assert all((tmp_path / "out" / name).is_file() for name in names)


def test_a_vocabulary_by_language_is_copied(folders, tmp_path):
    languages = {"eng": {"a": 0, "b": 1}, "fra": {str(n): n for n in range(99)}}
    (Path(folders["_pretrained_"]) / "vocab.json").write_text(json.dumps(languages))
    merge(folders, tmp_path / "out", iterations=0)
    assert json.loads((tmp_path / "out" / "vocab.json").read_text()) == languages


@pytest.mark.parametrize("as_object", [False, True])
def test_no_tokenizer_of_an_earlier_merge_is_left(folders, tmp_path, as_object):
    base, out = Path(folders["_pretrained_"]), tmp_path / "out"
    for name in ("added_tokens.json", "merges.txt", "old.py"):
        (base / name).write_text("{}")
    merge(folders, out, iterations=0)
    (out / "README.md").write_text("mine")
    save_tokenizer(tmp_path / "own", 30)
    (base / "old.py").unlink()
    pool = CausalLMPool(folders, tokenizer=str(tmp_path / "own"))
    if as_object:
        pool.tokenizer = {
            "_target_": "transformers.AutoTokenizer.from_pretrained",
            "pretrained_model_name_or_path": str(tmp_path / "own"),
        }
    merge(pool, out, iterations=0, overwrite=True)
    names = {file.name for file in out.iterdir()}
    assert {"tokenizer.json", "config.json", "README.md"} < names
    assert names.isdisjoint({"added_tokens.json", "merges.txt", "old.py"})


@pytest.mark.parametrize("name", ["README.md", "config.json", "tokenizer_config.json"])
def test_what_users_change_in_a_merge_stays(folders, tmp_path, name, caplog):
    out = tmp_path / "out"
    merge(folders, out, iterations=0)
    first = (out / name).read_text()
    (out / name).write_text(first + " ")
    (out / "generation_config.json").unlink()
    (Path(folders["_pretrained_"]) / "code.py").write_text("")
    (out / "code.py").write_text("mine")
    merge(folders, out, iterations=0)
    assert (out / name).read_text() == first + " "
    assert (out / "code.py").read_text() == "mine"
    for kept in (name, "code.py"):
        assert f"{out / kept} is not, or no longer, of this merge" in caplog.text
    assert (out / "generation_config.json").is_file()
    with pytest.raises(ValueError, match="no part of a merge: .'code.py'"):
        merge(folders, out, iterations=0, keep=["*norm*"], overwrite=True)
    (out / "code.py").unlink()
    merge(folders, out, iterations=0, keep=["*norm*"], overwrite=True)
    assert (out / name).read_text().rstrip(" ") == (out / name).read_text()


def test_a_merge_of_an_older_version_is_taken_up(folders, tmp_path):
    """Its manifest lists the files beside the weights without their hashes."""
    merge(folders, tmp_path, iterations=0)
    manifest = tmp_path / "merge.json"
    state = json.loads(manifest.read_text())
    state["companions"] = [*state["companions"], "folder", "../other"]
    (tmp_path / "folder").mkdir()
    other = tmp_path.parent / "other"
    other.write_text("mine")
    manifest.write_text(json.dumps(state))
    (tmp_path / "tokenizer_config.json").write_text("older")
    merge(folders, tmp_path, iterations=0)
    assert "_pretrained_" in (tmp_path / "tokenizer_config.json").read_text()
    assert (tmp_path / "folder").is_dir() and other.read_text() == "mine"


@pytest.mark.parametrize("name", ["vocab.txt", "generation_config.json", "code.py"])
@pytest.mark.parametrize("through_folder", [False, True])
def test_links_bring_nothing_from_outside(folders, tmp_path, name, through_folder):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "tools.jinja").write_text("secret")
    link = Path(folders["_pretrained_"]) / name
    if through_folder:
        link = link.with_name("additional_chat_templates")
    link.unlink(missing_ok=True)
    link.symlink_to(secret if through_folder else secret / "tools.jinja")
    with pytest.raises(ValueError, match="is a link to .*secret.*, outside its model"):
        merge(folders, tmp_path / "out", iterations=0)
    assert not (tmp_path / "out").exists()


def test_the_hubs_cache_is_made_of_links(folders, tmp_path):
    """Its models are links from snapshots to blobs beside them."""
    model = tmp_path / "models--owner--base"
    snapshot = model / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    for number, file in enumerate(Path(folders["_pretrained_"]).iterdir()):
        shutil.copy(file, model / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    pool = folders | {"_pretrained_": str(snapshot)}
    merge(pool, tmp_path / "out", iterations=0)
    assert "_pretrained_" in (tmp_path / "out" / "tokenizer_config.json").read_text()
    assert not any(file.is_symlink() for file in (tmp_path / "out").rglob("*"))
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
