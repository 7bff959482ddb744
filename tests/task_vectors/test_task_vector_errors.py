"""What is wrong with models is said before any work, with names and a way out."""

import json
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from toy_models import Tied, Toy, family, from_family, shifted

from fusion_plugins.task_vectors import (
    SafetensorsCheckpoint,
    StateDictCheckpoint,
    TaskVectors,
    as_coefficients,
    gram_matrices,
    merge_into,
    merged_state_dict,
)


def merge_with(change: Callable[[nn.Module], None], kind=Toy, base_change=None):
    """Walk a family whose expert 'green' was changed."""
    base, experts = family(kind)
    change(experts["green"])
    if base_change is not None:
        base_change(base)
    task_vectors = TaskVectors.from_modules(base, experts)
    return gram_matrices(task_vectors)


def spoil(value: float, name: str = "linear.weight") -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        model.get_parameter(name).data[1, 2] = value

    return change


def fill(value: float, dtype=torch.float32) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        model.linear.to(dtype).weight.data.fill_(value)

    return change


def untie(model: nn.Module) -> None:
    model.head.weight = nn.Parameter(model.head.weight.detach() + 1)


def quantise(model: nn.Module) -> None:
    quantised = model.linear.weight.detach().to(torch.int8)
    del model.linear.weight
    model.linear.register_buffer("weight", quantised)


def to_float8(model: nn.Module) -> None:
    model.linear.weight.data = model.linear.weight.data.to(torch.float8_e4m3fn)


def merge_nan_without_gram():
    base, experts = family()
    spoil(torch.nan)(experts["blue"])
    task_vectors = TaskVectors.from_modules(base, experts)
    merged_state_dict(task_vectors, as_coefficients(task_vectors, torch.ones(3)))


def coefficients_of(shape):
    task_vectors = from_family()
    merged_state_dict(task_vectors, as_coefficients(task_vectors, torch.ones(shape)))


def merge_raw(change: Callable[[dict], None], module: nn.Module | None = None):
    task_vectors = from_family()
    coefficients = as_coefficients(task_vectors, torch.ones(3))
    change(coefficients)
    merge_into(module or Toy(), task_vectors, coefficients)


def smaller_head() -> nn.Module:
    model = Toy()
    model.linear = nn.Linear(5, 3)
    return model


def put(tensor: torch.Tensor) -> Callable[[nn.Module], None]:
    return lambda model: model.register_buffer("odd", tensor)


class Packed(nn.Linear):
    """As quantised layers keep their weights."""

    def get_extra_state(self):
        return {"scale": 2.0}


MODEL_ERRORS = {
    "no expert": (
        lambda: TaskVectors.from_modules(Toy(), {}),
        "no expert to merge.*Add at least one fine-tuned model",
    ),
    "missing tensor": (
        lambda: merge_with(lambda m: setattr(m, "linear", nn.Identity())),
        r"expert 'green' lacks 2 tensor\(s\) of the base: 'linear.weight',"
        " 'linear.bias'.*patterns for them in `keep`",
    ),
    "extra tensor": (
        lambda: merge_with(lambda m: setattr(m, "classifier", nn.Linear(5, 2))),
        r"expert 'green' has 2 tensor\(s\) that the base lacks:"
        " 'classifier.weight', 'classifier.bias'.*`keep`",
    ),
    "many missing": (
        lambda: TaskVectors(
            StateDictCheckpoint({str(i): torch.ones(1) for i in range(9)}, "the base"),
            {"a": StateDictCheckpoint({}, "expert 'a'")},
        ),
        r"lacks 9 tensor\(s\).*'4' and 4 more",
    ),
    "other shape": (
        lambda: merge_with(lambda m: setattr(m, "linear", nn.Linear(5, 9))),
        r"expert 'green': tensor 'linear.weight' has shape \(9, 5\), the base has"
        r" \(4, 5\).*keep=\['linear.weight'\]",
    ),
    "complex parameter": (
        lambda: merge_with(put(torch.ones(2, dtype=torch.complex64))),
        "expert 'green': 'odd' is a tensor of torch.complex64.*plain tensors of real",
    ),
    "sparse buffer": (
        lambda: merge_with(put(torch.eye(2).to_sparse())),
        "expert 'green': 'odd' is a tensor of torch.float32, torch.sparse_coo, which",
    ),
    "tensor of codes": (
        lambda: merge_with(
            put(torch.quantize_per_tensor(torch.ones(2), 1, 0, torch.qint8))
        ),
        "expert 'green': 'odd' is a tensor of torch.qint8.*neither quantised nor sparse",
    ),
    "meta tensor": (
        lambda: merge_with(put(torch.ones(2, device="meta"))),
        "expert 'green': 'odd' is without values, which cannot be merged",
    ),
    "lazy layer": (
        lambda: merge_with(lambda m: setattr(m, "lazy", nn.LazyLinear(2))),
        "expert 'green': 'lazy.weight' is without values, which cannot be merged",
    ),
    "packed layer": (
        lambda: merge_with(lambda m: setattr(m, "linear", Packed(5, 4))),
        "expert 'green': 'linear._extra_state' is a dict, which cannot be merged",
    ),
    "quantised expert": (
        lambda: merge_with(quantise),
        "expert 'green': tensor 'linear.weight' is torch.int8, the base has"
        " torch.float32.*save both models in a floating dtype",
    ),
    "float8 expert": (
        lambda: merge_with(to_float8),
        "expert 'green': tensor 'linear.weight' is torch.float8_e4m3fn.*bfloat16",
    ),
    "float8 base": (
        lambda: merge_with(lambda m: None, base_change=to_float8),
        "the base: tensor 'linear.weight' is torch.float8_e4m3fn.*bfloat16",
    ),
    "trained apart": (
        lambda: merge_with(untie, Tied),
        "expert 'green' holds different values in 'embed.weight' and 'head.weight',"
        " which are one tied tensor in the base. Untie them",
    ),
    "nan in an expert": (
        lambda: merge_with(spoil(torch.nan)),
        "expert 'green': tensor 'linear.weight' holds 1 NaN or Inf of 20 entries.*"
        "leave out this checkpoint",
    ),
    "inf in an expert": (
        lambda: merge_with(spoil(-torch.inf)),
        "expert 'green': tensor 'linear.weight' holds 1 NaN or Inf of 20",
    ),
    "nan in a tied tensor": (
        lambda: merge_with(spoil(torch.nan, "embed.weight"), Tied),
        "expert 'green': tensor 'embed.weight' holds 1 NaN or Inf of 28 entries.*"
        r"with keep=\['embed.weight'\]",
    ),
    "nan in the base": (
        lambda: merge_with(lambda m: None, base_change=spoil(torch.nan)),
        "the base: tensor 'linear.weight' holds 1 NaN or Inf of 20 entries",
    ),
    "nan found while merging": (
        merge_nan_without_gram,
        "expert 'blue': tensor 'linear.weight' holds 1 NaN or Inf of 20 entries",
    ),
    "nothing floating": (
        lambda: TaskVectors(
            StateDictCheckpoint({"ids": torch.arange(3)}, "the base"),
            {"a": StateDictCheckpoint({"ids": torch.arange(3)}, "expert 'a'")},
        ),
        r"the base has no floating tensor to merge: it holds 1 tensor",
    ),
    "everything kept": (
        lambda: from_family(keep=["*"]),
        r"no floating tensor to merge.*`keep` is \['\*'\]",
    ),
    "include matches nothing": (
        lambda: from_family().select(["*attention*"], []),
        r"include: pattern '\*attention\*' matches none of the 10 tensors.*shell-style",
    ),
    "exclude matches nothing": (
        lambda: from_family().select([], ["conv.weigth"]),
        "exclude: pattern 'conv.weigth' matches none of the 10 tensors",
    ),
    "nothing selected": (
        lambda: from_family().select(["conv.*"], ["conv.*"]),
        r"include=\['conv.\*'\] and exclude=\['conv.\*'\] leave none of the 10",
    ),
    "granularity": (
        lambda: gram_matrices(from_family(), "layer"),
        "granularity is 'layer', expected one of .*'model', 'tensor', 'row'",
    ),
    "coefficients for two of three tasks": (
        lambda: coefficients_of((2,)),
        r"coefficients have shape \(2,\), expected \(3,\) for one per task or"
        r" \(3, 10\) for one per task and tensor",
    ),
    "coefficients turned around": (
        lambda: coefficients_of((10, 3)),
        r"shape \(10, 3\), expected .*\(3, 10\)",
    ),
    "complex coefficients": (
        lambda: as_coefficients(from_family(), torch.ones(3) * 1j),
        "coefficients are tensor.*, expected real numbers: a tensor, an array or a list",
    ),
    "coefficients that are none": (
        lambda: as_coefficients(from_family(), {"red": 1.0}),
        r"coefficients are \{'red': 1.0\}, expected real numbers",
    ),
    "a difference too large for float32": (
        lambda: merge_with(fill(3e38), base_change=fill(-3e38)),
        "expert 'green': in tensor 'linear.weight' it is so far from the base.*keep=",
    ),
    "a product too large for float64": (
        lambda: merge_with(fill(1e160, torch.float64)),
        "expert 'green': in tensor 'linear.weight' it is so far from the base",
    ),
    "coefficients missing": (
        lambda: merge_raw(lambda c: c.pop("scale")),
        "no coefficients for tensor 'scale'.*as_coefficients",
    ),
    "coefficients of another pool": (
        lambda: merge_raw(lambda c: c.update({"conv.weight": torch.ones(4)})),
        r"coefficients of 'conv.weight' have shape \(4,\), expected \(3,\) or \(3, 5\)",
    ),
    "coefficients for other rows": (
        lambda: merge_raw(lambda c: c.update({"conv.weight": torch.ones(3, 4)})),
        r"coefficients of 'conv.weight' have shape \(3, 4\), expected \(3,\) or \(3, 5",
    ),
    "module without a tensor": (
        lambda: merge_raw(lambda c: None, nn.Linear(5, 4)),
        r"Linear cannot take the merged weights: it lacks 'scale'",
    ),
    "module of another shape": (
        lambda: merge_raw(lambda c: None, smaller_head()),
        r"Toy cannot take the merged weights: 'linear.weight' has shape \(3, 5\),"
        r" expected \(4, 5\)",
    ),
}


@pytest.mark.parametrize("granularity", ["model", "tensor", "row"])
def test_a_tensor_that_overflows_is_named_at_every_granularity(granularity):
    base, experts = family()
    fill(1e160, torch.float64)(experts["blue"])
    with pytest.raises(
        ValueError, match="^expert 'blue': in tensor 'linear.weight' it"
    ):
        gram_matrices(TaskVectors.from_modules(base, experts), granularity)


@pytest.mark.parametrize("kind", [list, tuple, np.array, np.float32])
def test_coefficients_may_be_lists_and_arrays(kind):
    task_vectors, values = from_family(), [0.25, 0.5, 1.0]
    got = merged_state_dict(task_vectors, as_coefficients(task_vectors, kind(values)))
    weights = as_coefficients(task_vectors, torch.tensor(values))
    for name, value in merged_state_dict(task_vectors, weights).items():
        assert torch.equal(got[name], value)


@pytest.mark.parametrize(("call", "message"), MODEL_ERRORS.values(), ids=MODEL_ERRORS)
def test_models_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        call()


def nothing(folder: Path) -> Path:
    return folder / "gone"


def pickles(folder: Path) -> Path:
    torch.save(Toy().state_dict(), folder / "pytorch_model.bin")
    return folder


def pickle_file(folder: Path) -> Path:
    return pickles(folder) / "pytorch_model.bin"


def two_indices(folder: Path) -> Path:
    for name in ("model", "other"):
        (folder / f"{name}.safetensors.index.json").write_text("{}")
    return folder


def missing_shard(folder: Path) -> Path:
    index = '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(index)
    return folder


def unknown_dtype(folder: Path) -> Path:
    file = folder / "model.safetensors"
    save_file({"a": torch.ones(2, dtype=torch.complex64)}, file)
    return file


def tensor_in_two_shards(folder: Path) -> Path:
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name in names:
        save_file({"a": torch.ones(2), name: torch.ones(1)}, folder / name)
    index = {"weight_map": {"a": names[0], names[0]: names[0], names[1]: names[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def broken_header(folder: Path) -> Path:
    file = folder / "model.safetensors"
    file.write_bytes(b"<html>not found</html>")
    return file


def cut_short(folder: Path) -> Path:
    file = folder / "model.safetensors"
    save_file({"a": torch.ones(9)}, file)
    file.write_bytes(file.read_bytes()[:-1])
    return folder


def git_lfs_pointer(folder: Path) -> Path:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (folder / "model.safetensors").write_text(pointer)
    return folder


def broken_index(folder: Path) -> Path:
    (folder / "model.safetensors.index.json").write_text('{"weights": {}}')
    return folder


def index_cut_short(folder: Path) -> Path:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": ')
    return folder


def index_that_is_a_list(folder: Path) -> Path:
    (folder / "model.safetensors.index.json").write_text("[]")
    return folder


def quantised_folder(folder: Path) -> Path:
    save_file({"a": torch.ones(2, dtype=torch.int32)}, folder / "model.safetensors")
    config = '{"quantization_config": {"quant_method": "awq"}}'
    (folder / "config.json").write_text(config)
    return folder


def broken_config(folder: Path) -> Path:
    save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{")
    return folder


FILE_ERRORS = {
    nothing: r"expert 'a': .*gone does not exist",
    pickles: r"expert 'a': expected model.safetensors .* found \['pytorch_model.bin'\]."
    " Convert pickles once with model.save_pretrained",
    pickle_file: r"expected model.safetensors .*found \['pytorch_model.bin'\]. Convert",
    two_indices: "expected model.safetensors or one .*index.json.*found .*other",
    missing_shard: r"index.json lists \['model-00001-of-00002.safetensors'\], which are"
    " not in .*Download or save it again",
    unknown_dtype: "tensor 'a' in .*model.safetensors has dtype C64, known are",
    tensor_in_two_shards: "expert 'a': tensor 'a' is both in .*model-00001-of-00002.safe"
    "tensors and in model-00002-of-00002.safetensors. Save the model again",
    broken_header: "expert 'a': .*model.safetensors is truncated or no safetensors file.*"
    "again",
    cut_short: "expert 'a': .*model.safetensors is truncated or no .*save it again",
    git_lfs_pointer: "expert 'a': .*model.safetensors is truncated .*`git lfs pull`",
    broken_index: "expert 'a': .*index.json is damaged or not an index.*again",
    index_cut_short: "expert 'a': .*index.json is damaged or not an index.*again",
    index_that_is_a_list: "expert 'a': .*index.json is damaged or not an index.*again",
    quantised_folder: r"expert 'a': .* is quantised \(awq\).*dequantise it and save it",
    broken_config: "expert 'a': .*config.json is damaged .*save it again",
}


@pytest.mark.parametrize("make", FILE_ERRORS, ids=lambda make: make.__name__)
def test_files_that_cannot_be_read_are_refused(tmp_path, make):
    message = re.compile(FILE_ERRORS[make], re.DOTALL)
    path = make(tmp_path)
    with pytest.raises(ValueError, match=message):
        SafetensorsCheckpoint(path, "expert 'a'")


def test_from_checkpoints_names_base_and_expert(tmp_path):
    save_file(Toy().state_dict(), tmp_path / "base.safetensors")
    (tmp_path / "pickled").mkdir()
    expert = pickles(tmp_path / "pickled")
    with pytest.raises(ValueError, match="expert 'digits': expected model.safetensors"):
        TaskVectors.from_checkpoints(tmp_path / "base.safetensors", {"digits": expert})
    with pytest.raises(ValueError, match="the base: expected model.safetensors"):
        TaskVectors.from_checkpoints(expert, {"digits": tmp_path / "base.safetensors"})


def test_shapes_are_checked_before_a_value_is_read(monkeypatch):
    base = Toy()
    expert = shifted(base, 1)
    expert.linear = nn.Linear(5, 9)

    def read(self, name, rows=None):
        raise AssertionError(f"read {name}")

    monkeypatch.setattr(StateDictCheckpoint, "read", read)
    with pytest.raises(ValueError, match="'linear.weight' has shape"):
        TaskVectors.from_modules(base, {"a": expert})


def test_a_refused_merge_leaves_the_module_as_it_was():
    module = smaller_head()
    before = deepcopy(module.state_dict())
    with pytest.raises(ValueError, match="cannot take the merged weights"):
        merge_raw(lambda c: None, module)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_keep_pattern_that_matches_nothing_is_a_typo():
    with pytest.raises(ValueError, match=r"keep: pattern 'clasifier\.\*' matches none"):
        from_family(keep=["clasifier.*"])


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(100, 7)}, str(path))
    checkpoint = SafetensorsCheckpoint(path, "expert 'green'")
    path.write_bytes(path.read_bytes()[:-8])
    # What is still there can be read.
    assert torch.equal(checkpoint.read("weight", slice(0, 99)), torch.ones(99, 7))
    message = "expert 'green': .*model.safetensors ends inside tensor 'weight'"
    with pytest.raises(ValueError, match=message):
        checkpoint.read("weight", slice(99, 100))
