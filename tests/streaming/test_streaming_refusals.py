"""What is refused before anything is written, in one line that says what to do."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from fusion_bench.method import TaskArithmeticAlgorithm, TiesMergingAlgorithm
from tiny_llamas import merge, merged_files, replace_weights, shard_files

from fusion_plugins.streaming import StreamingAWDAlgorithm
from fusion_plugins.streaming.output import INDEX


@pytest.fixture
def folders(llamas, tmp_path) -> dict[str, str]:
    """A copy that may be written into."""
    for name, folder in llamas.items():
        shutil.copytree(folder, tmp_path / "models" / name)
    return {name: str(tmp_path / "models" / name) for name in llamas}


def refused(pool, output: Path, message: str, **options) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        merge(pool, output, **{"iterations": 0} | options)
    assert "\n" not in str(caught.value)
    assert not (output / INDEX).exists()


# Options


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1e300, "2", True])
def test_shard_sizes_out_of_range(value):
    with pytest.raises(ValueError, match="shard_gb is .*expected a number in"):
        StreamingAWDAlgorithm(shard_gb=value)


@pytest.mark.parametrize("value", ["", "  ", 3, ["a"]])
def test_outputs_that_are_no_path(value):
    with pytest.raises(ValueError, match="output is .*expected a path"):
        StreamingAWDAlgorithm(output=value)


@pytest.mark.parametrize("scaling", [float("nan"), float("inf")])
@pytest.mark.parametrize("ties", [False, True])
def test_scaling_that_is_no_number(llamas, tmp_path, scaling, ties):
    base = TaskArithmeticAlgorithm(scaling)
    if ties:
        base = TiesMergingAlgorithm(scaling, 20, [], "sum")
    message = "base.scaling_factor is (nan|inf), expected a number"
    refused(llamas, tmp_path / "out", message, base=base)


def test_ties_without_a_merge_function(llamas, tmp_path):
    base = TiesMergingAlgorithm(0.3, 20, [], None)
    refused(
        llamas, tmp_path / "out", "merge_func is 'None', expected one of", base=base
    )


# Output folders


@pytest.mark.parametrize("place", ["out", "out/below", "out/.merge"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_nothing_is_written_through_files_and_dangling_links(
    llamas, tmp_path, place, kind
):
    output = tmp_path / "out" / "below" if place == "out/below" else tmp_path / "out"
    obstacle = tmp_path / ("out" if place != "out/.merge" else "out/.merge")
    obstacle.parent.mkdir(exist_ok=True)
    if kind == "file":
        obstacle.write_text("mine")
    else:
        obstacle.symlink_to(tmp_path / "gone")
    means = {"file": "is a file", "link": "is a link to nothing"}[kind]
    message = f"cannot be written to {output}: {obstacle} {means}.*method.output"
    refused({"_pretrained_": "unread", "math": "unread"}, output, message)


def test_no_folder_is_named_after_a_missing_log_folder(llamas):
    with pytest.raises(
        ValueError, match="no folder for the merged model .'.log_dir./m'"
    ):
        merge(llamas, "{log_dir}/m")


@pytest.mark.parametrize("through_links", [False, True])
def test_an_input_is_never_overwritten(llamas, tmp_path, through_links):
    first = tmp_path / "first"
    merge(llamas, first, iterations=0)
    before = {file: file.read_bytes() for file in shard_files(first)}
    source = first
    if through_links:
        source = tmp_path / "links"
        source.mkdir()
        for file in (*shard_files(first), first / INDEX, first / "config.json"):
            (source / file.name).symlink_to(file)
    pool = {**llamas, "math": str(source)}
    with pytest.raises(ValueError, match="model 'math' is merged from .*of the result"):
        merge(pool, first, iterations=0, overwrite=True)
    assert {file: file.read_bytes() for file in shard_files(first)} == before
    assert (first / INDEX).is_file()


# Kinds of weights


def edit_config(folder: str, **values) -> None:
    file = Path(folder) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("kind", ["gptq", "awq", "bitsandbytes"])
@pytest.mark.parametrize("name", ["_pretrained_", "math"])
def test_quantised_models(folders, tmp_path, kind, name):
    edit_config(folders[name], quantization_config={"quant_method": kind, "bits": 4})
    message = f"{name}'.*is quantised .{kind}.*dequantise it"
    refused(folders, tmp_path / "out", message)


def test_packed_weights_that_the_config_conceals(folders, tmp_path):
    name = "model.layers.0.mlp.up_proj"
    for folder in folders.values():
        tensors = merged_files(folder)
        del tensors[f"{name}.weight"]
        tensors[f"{name}.qweight"] = torch.zeros(2, 24, dtype=torch.int32)
        tensors[f"{name}.scales"] = torch.ones(1, 24, dtype=torch.float16)
        replace_weights(folder, tensors)
    message = "holds integers where a LlamaForCausalLM has weights .'.*up_proj.qweight'"
    refused(folders, tmp_path / "out", message)


def test_adapters_have_no_model_to_stream(folders, tmp_path):
    (Path(folders["math"]) / "adapter_config.json").write_text("{}")
    message = "expert 'math': .* is an adapter .LoRA.*merge_and_unload.*method=awd"
    refused(folders, tmp_path / "out", message)


def test_models_that_are_not_there(llamas, tmp_path, monkeypatch):
    def lacking(**options):
        raise OSError("two\nlines")

    module = "fusion_bench.utils.lazy_state_dict.snapshot_download"
    monkeypatch.setattr(module, lacking)
    message = "model 'math': org/nope is neither a folder nor a model .*two lines"
    refused(llamas | {"math": "org/nope"}, tmp_path / "out", message)


# Damaged files


def test_a_tensor_that_every_model_lacks(folders, tmp_path):
    for folder in folders.values():
        tensors = merged_files(folder)
        names = {name: name.replace("layers.1", "blocks.1") for name in tensors}
        replace_weights(folder, {names[n]: value for n, value in tensors.items()})
    message = (
        "lacks 9 tensor.s. of a LlamaForCausalLM: 'model.layers.1.*save_pretrained"
    )
    refused(folders, tmp_path / "out", message)


@pytest.mark.parametrize(
    "content", ["version https://git-lfs.github.com/spec/v1\n", "", "{", "half"]
)
def test_damaged_shards_are_named(folders, tmp_path, content):
    file = shard_files(folders["math"])[1]
    whole = file.read_bytes()
    file.write_bytes(
        whole[: len(whole) // 2] if content == "half" else content.encode()
    )
    message = f"expert 'math': {file} is truncated or no safetensors.*git lfs pull"
    refused(folders, tmp_path / "out", message)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}']
)
def test_damaged_indices_are_named(folders, tmp_path, content):
    file = Path(folders["math"]) / INDEX
    file.write_text(content)
    refused(folders, tmp_path / "out", f"expert 'math': {file} is damaged.*Download")


@pytest.mark.parametrize("place", ["../code/{}", "{folder}/{}", "below/{}"])
def test_an_index_reads_its_own_folder_only(folders, tmp_path, place):
    name = shard_files(folders["code"])[0].name
    place = place.format(name, folder=folders["code"])
    file = Path(folders["math"]) / INDEX
    file.write_text(json.dumps({"weight_map": {"lm_head.weight": place}}))
    message = f"expert 'math': {file} names '.*', which is not in its own folder"
    refused(folders, tmp_path / "out", message)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": "unheard-of"}'])
def test_damaged_configs_are_named(folders, tmp_path, content):
    file = Path(folders["math"]) / "config.json"
    file.write_text(content)
    refused(folders, tmp_path / "out", f"expert 'math': {file} (is damaged|cannot be)")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"num_hidden_layers": 1},
            "is of another size than its tensors: 'model.layers.1",
        ),
        (
            {"vocab_size": 80},
            "is of another size than its tensors: 'model.embed_tokens",
        ),
        ({"vocab_size": "64"}, "cannot be used"),
    ],
)
def test_configs_of_another_size_are_refused(folders, tmp_path, value, message):
    file = Path(folders["_pretrained_"]) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | value))
    refused(folders, tmp_path / "out", f"the base .*config.json.* {message}")


def test_two_names_for_one_tensor_are_refused_by_model(folders, tmp_path):
    tensors = merged_files(folders["math"])
    tensors["module.lm_head.weight"] = tensors["lm_head.weight"].clone()
    replace_weights(folders["math"], tensors)
    message = "expert 'math', in .*: both .* could be the tensor 'lm_head.weight'"
    refused(folders, tmp_path / "out", message)


NAMES = ("adapter_config.json", "config.json", "vocab.txt", "merges.txt", "code.py")


@pytest.mark.parametrize("name", [*NAMES, "additional_chat_templates/tools.jinja"])
def test_a_folder_with_files_of_a_model_takes_no_merge(folders, tmp_path, name):
    if name not in ("adapter_config.json", "config.json", "vocab.txt"):
        file = Path(folders["_pretrained_"]) / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("{}")
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("{}")
    with pytest.raises(ValueError, match=f"no part of a merge: .'{name}'"):
        merge(folders, tmp_path / "out", iterations=0, overwrite=True)
    assert (tmp_path / "out" / name).read_text() == "{}"


PARTS = ("shards", "companions", "statistics", "options", "inputs", "versions")


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "{}", "null", '{"shards": 3}'),
        *(json.dumps({"shards": {}} | {part: None}) for part in PARTS),
        *(json.dumps({"shards": {}} | {part: [3]}) for part in PARTS),
    ],
)
def test_a_damaged_manifest_is_named(llamas, tmp_path, content):
    merge(llamas, tmp_path / "out", iterations=0)
    manifest = tmp_path / "out" / "merge.json"
    manifest.write_text(content)
    with pytest.raises(ValueError, match=f"{manifest} is damaged.*method.output"):
        merge(llamas, tmp_path / "out", iterations=0)


# Results that are no numbers


def test_overflow_of_the_results_dtype(llamas, tmp_path):
    base = TaskArithmeticAlgorithm(1e6)
    message = (
        "The merged tensor '.*' reaches .*, more than torch.float16 holds .6.55e.04.*"
        "Set method.dtype=bfloat16 or float32"
    )
    refused(llamas, tmp_path / "out", message, base=base, dtype="float16")
    merge(llamas, tmp_path / "wide", base=base, dtype="float32", iterations=0)


def test_overflow_of_half_precision_models(folders, tmp_path):
    """Each model is finite in float16; base + 0.5 * three task vectors is 1.2e5."""
    for name, folder in folders.items():
        value = -6e4 if name == "_pretrained_" else 6e4
        tensors = merged_files(folder)
        full = {key: torch.full_like(t, value).half() for key, t in tensors.items()}
        replace_weights(folder, full)
    base = TaskArithmeticAlgorithm(0.5)
    message = "'lm_head.weight' reaches 1.2e.05, more than torch.float16"
    refused(folders, tmp_path / "out", message, base=base)


def test_overflow_of_a_kept_tensor(folders, tmp_path):
    for folder in folders.values():
        tensors = merged_files(folder)
        tensors["model.norm.weight"] *= 1e6
        replace_weights(folder, tensors)
    message = "'model.norm.weight' reaches 1e.06, more than torch.float16"
    options = {"keep": ["model.norm.weight"], "dtype": "float16"}
    refused(folders, tmp_path / "out", message, **options)


def test_a_kept_tensor_may_hold_infinity(folders, tmp_path):
    tensors = merged_files(folders["_pretrained_"])
    tensors["model.norm.weight"][1] = -torch.inf  # as a mask does
    replace_weights(folders["_pretrained_"], tensors)
    options = {"keep": ["model.norm.weight"], "dtype": "bfloat16"}
    merge(folders, tmp_path / "out", iterations=0, **options)
    got = merged_files(tmp_path / "out")["model.norm.weight"]
    assert torch.equal(got, tensors["model.norm.weight"].bfloat16())


def test_overflow_of_the_merge_itself(llamas, tmp_path):
    base = TaskArithmeticAlgorithm(1e39)
    message = "The merged tensor '.*' holds NaN or Inf: its weights .*too large.*Lower"
    refused(llamas, tmp_path / "out", message, base=base)
