"""The linear merge against plain loops, from modules and from files."""

import json
from copy import deepcopy

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from toy_models import TASKS, Tied, Toy, family, shifted, vectors

from fusion_plugins.task_vectors import (
    TaskVectors,
    as_coefficients,
    blocks,
    collection,
    gram_matrices,
    merge_into,
    merged_state_dict,
)

WEIGHTS = torch.tensor([0.3, -0.2, 0.7], dtype=torch.float64)


def plain_loop(base, experts, key: str, weights: Tensor) -> Tensor:
    """base + sum over tasks of weight * task vector, in float64."""
    merged = base.state_dict()[key].double().clone()
    for weight, tau in zip(weights, vectors(base, experts, key), strict=True):
        merged += weight * tau
    return merged


def row_wise(task_vectors: TaskVectors) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    coefficients = {}
    for key in task_vectors.keys:
        shape = task_vectors.shape(key)
        rows = shape[0] if len(shape) > 1 else 1
        coefficients[key] = torch.randn(3, rows, generator=generator).double()
    return coefficients


def same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert list(got) == list(want)
    for name, value in want.items():
        assert got[name].dtype == value.dtype
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize("kind", [Toy, Tied])
def test_both_merges_equal_plain_loops(kind):
    base, experts = family(kind)
    task_vectors = TaskVectors.from_modules(base, experts)
    coefficients = as_coefficients(task_vectors, WEIGHTS)
    state = merged_state_dict(task_vectors, coefficients)
    for key in task_vectors.keys:
        want = plain_loop(base, experts, key, WEIGHTS).float()
        torch.testing.assert_close(state[key], want, rtol=0, atol=1e-6)
    module = merge_into(deepcopy(base), task_vectors, coefficients)
    same(module.state_dict(), state)


def test_float64_models_are_merged_in_float64():
    base, experts = family()
    base, experts = base.double(), {t: e.double() for t, e in experts.items()}
    task_vectors = TaskVectors.from_modules(base, experts)
    state = merged_state_dict(task_vectors, as_coefficients(task_vectors, WEIGHTS))
    for key in task_vectors.keys:
        want = plain_loop(base, experts, key, WEIGHTS)
        torch.testing.assert_close(state[key], want, rtol=0, atol=1e-14)


def test_layer_wise_coefficients_weigh_every_tensor_on_its_own():
    base, experts = family()
    task_vectors = TaskVectors.from_modules(base, experts)
    values = torch.linspace(-1, 1, 3 * len(task_vectors.keys)).view(3, -1).double()
    state = merged_state_dict(task_vectors, as_coefficients(task_vectors, values))
    for column, key in enumerate(task_vectors.keys):
        want = plain_loop(base, experts, key, values[:, column]).float()
        torch.testing.assert_close(state[key], want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("entries", [2**20, 7], ids=["whole", "small_blocks"])
def test_row_wise_coefficients_weigh_every_row_on_its_own(monkeypatch, entries):
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", entries)
    base, experts = family()
    task_vectors = TaskVectors.from_modules(base, experts)
    coefficients = row_wise(task_vectors)
    state = merged_state_dict(task_vectors, coefficients)
    module = merge_into(deepcopy(base), task_vectors, coefficients)
    same(module.state_dict(), state)
    for key in ("conv.weight", "linear.weight"):
        for row in range(task_vectors.shape(key)[0]):
            want = plain_loop(base, experts, key, coefficients[key][:, row])[row]
            torch.testing.assert_close(state[key][row], want.float(), rtol=0, atol=1e-6)


def test_small_blocks_merge_the_same(monkeypatch):
    base, experts = family()
    task_vectors = TaskVectors.from_modules(base, experts)
    coefficients = as_coefficients(task_vectors, WEIGHTS)
    want = merged_state_dict(task_vectors, coefficients)
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", 5)
    got = merged_state_dict(task_vectors, coefficients)
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, rtol=1e-6, atol=1e-7)


def test_the_base_itself_may_be_overwritten():
    base, experts = family()
    task_vectors = TaskVectors.from_modules(base, experts)
    coefficients = as_coefficients(task_vectors, WEIGHTS)
    want = merged_state_dict(task_vectors, coefficients)
    same(merge_into(base, task_vectors, coefficients).state_dict(), want)


def test_merging_leaves_base_and_experts_alone():
    base, experts = family()
    before = deepcopy([m.state_dict() for m in (base, *experts.values())])
    task_vectors = TaskVectors.from_modules(base, experts)
    coefficients = as_coefficients(task_vectors, WEIGHTS)
    state = merged_state_dict(task_vectors, coefficients)
    merge_into(deepcopy(base), task_vectors, coefficients)
    gram_matrices(task_vectors, "row")
    state["mask"].logical_not_()
    for model, kept in zip((base, *experts.values()), before, strict=True):
        same(model.state_dict(), kept)


def test_counters_and_masks_come_from_the_base():
    base, experts = family()
    task_vectors = TaskVectors.from_modules(base, experts)
    state = merged_state_dict(task_vectors, as_coefficients(task_vectors, WEIGHTS))
    assert state["norm.num_batches_tracked"].item() == 0
    assert experts["red"].state_dict()["norm.num_batches_tracked"].item() != 0
    assert state["mask"].tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_merged_in_float32_and_rounded_once(dtype):
    base, experts = family()
    base, experts = base.to(dtype), {t: e.to(dtype) for t, e in experts.items()}
    task_vectors = TaskVectors.from_modules(base, experts)
    state = merged_state_dict(task_vectors, as_coefficients(task_vectors, WEIGHTS))
    for key in task_vectors.keys:
        exact = plain_loop(base, experts, key, WEIGHTS)
        got, want = state[key].double(), exact.to(dtype).double()
        assert state[key].dtype == dtype
        ulp = torch.finfo(dtype).eps * want.abs().clamp_min(1e-3)
        assert ((got - want).abs() <= ulp).all()
        # A float32 sum can fall on the other side of a tie, and only of a tie.
        ties = (exact - (got + want) / 2).abs() <= 1e-7
        assert ((got == want) | ties).all()


def test_half_precision_experts_on_a_float32_base():
    base, experts = family()
    experts = {t: e.half() for t, e in experts.items()}
    task_vectors = TaskVectors.from_modules(base, experts)
    state = merged_state_dict(task_vectors, as_coefficients(task_vectors, WEIGHTS))
    for key in task_vectors.keys:
        want = plain_loop(base, experts, key, WEIGHTS).float()
        torch.testing.assert_close(state[key], want, rtol=0, atol=1e-6)


def test_tied_weights_are_merged_once_and_stay_tied():
    base, experts = family(Tied)
    task_vectors = TaskVectors.from_modules(base, experts)
    assert task_vectors.tied_groups == [["embed.weight", "head.weight"]]
    coefficients = as_coefficients(task_vectors, WEIGHTS)
    want = plain_loop(base, experts, "embed.weight", WEIGHTS).float()
    module = merge_into(deepcopy(base), task_vectors, coefficients)
    assert module.embed.weight is module.head.weight
    torch.testing.assert_close(module.head.weight.data, want, rtol=0, atol=1e-6)
    state = merged_state_dict(task_vectors, coefficients)
    assert state["embed.weight"] is state["head.weight"]
    torch.testing.assert_close(state["head.weight"], want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kept_name", ["embed.weight", "head.weight"])
def test_files_with_one_name_of_a_tied_pair(tmp_path, kept_name):
    base, experts = family(Tied)
    names = (kept_name, "body.weight", "body.bias")
    checkpoints = {}
    for task, expert in experts.items():
        state = expert.state_dict()
        save_file({n: state[n] for n in names}, tmp_path / f"{task}.safetensors")
        checkpoints[task] = collection.SafetensorsCheckpoint(
            tmp_path / f"{task}.safetensors", f"expert '{task}'"
        )
    from_files = TaskVectors(collection.module_checkpoint(base, "base"), checkpoints)
    in_memory = TaskVectors.from_modules(base, experts)
    coefficients = as_coefficients(in_memory, WEIGHTS)
    same(
        merged_state_dict(from_files, coefficients),
        merged_state_dict(in_memory, coefficients),
    )


def test_tied_files_keep_the_one_name_they_have(tmp_path):
    base, experts = family(Tied)
    for name, model in {"base": base, **experts}.items():
        save_model(model, str(tmp_path / f"{name}.safetensors"))
    task_vectors = TaskVectors.from_checkpoints(
        tmp_path / "base.safetensors",
        {t: tmp_path / f"{t}.safetensors" for t in TASKS},
    )
    assert len(task_vectors.base_names) == 3
    state = merged_state_dict(task_vectors, as_coefficients(task_vectors, WEIGHTS))
    tied = set(state) & {"embed.weight", "head.weight"}
    assert len(tied) == 1
    want = plain_loop(base, experts, "embed.weight", WEIGHTS).float()
    torch.testing.assert_close(state[tied.pop()], want, rtol=0, atol=1e-6)


def save_folder(model: nn.Module, folder, layout: str):
    """Save as one file, a folder, or a folder of two shards with an index."""
    state = model.state_dict()
    if layout == "file":
        save_file(state, f"{folder}.safetensors")
        return f"{folder}.safetensors"
    folder.mkdir()
    if layout == "folder":
        save_file(state, folder / "model.safetensors")
        return folder
    names, weight_map = list(state), {}
    for shard, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        file = f"model-{shard + 1:05d}-of-00002.safetensors"
        save_file({n: state[n] for n in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["file", "folder", "shards"])
def test_files_give_what_modules_give(tmp_path, monkeypatch, layout, dtype):
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", 7)
    base, experts = family()
    base, experts = base.to(dtype), {t: e.to(dtype) for t, e in experts.items()}
    paths = {
        name: save_folder(model, tmp_path / name, layout)
        for name, model in {"base": base, **experts}.items()
    }
    from_files = TaskVectors.from_checkpoints(paths.pop("base"), paths)
    in_memory = TaskVectors.from_modules(base, experts)
    assert from_files.tasks == in_memory.tasks == TASKS
    assert sorted(from_files.keys) == sorted(in_memory.keys)
    coefficients = as_coefficients(in_memory, WEIGHTS)
    got = merged_state_dict(from_files, coefficients)
    want = merged_state_dict(in_memory, coefficients)
    same({name: got[name] for name in want}, want)
    grams = [gram_matrices(t, "row", in_memory.keys) for t in (from_files, in_memory)]
    assert torch.equal(grams[0].values, grams[1].values)


def test_what_was_read_outlives_later_reads(tmp_path):
    base, experts = family()
    path = tmp_path / "base.safetensors"
    save_file(base.state_dict(), path)
    file = collection.SafetensorsCheckpoint(path, "base")
    held = {name: file.read(name) for name in file.specs}
    rows = file.read("conv.weight", slice(1, 3))
    file.read("conv.weight", slice(3, 5))
    same({n: held[n] for n in base.state_dict()}, dict(base.state_dict()))
    assert torch.equal(rows, base.conv.weight[1:3])


def test_kept_tensors_stay_and_may_differ_in_shape_or_be_missing():
    base, experts = family()
    experts["red"].linear = nn.Linear(5, 9)
    experts["green"].linear = nn.Identity()
    experts["blue"].extra = nn.Linear(2, 2)
    task_vectors = TaskVectors.from_modules(base, experts, ["linear.*", "extra.*"])
    assert "conv.weight" in task_vectors.keys
    state = merged_state_dict(task_vectors, as_coefficients(task_vectors, WEIGHTS))
    assert list(state) == list(base.state_dict())
    assert torch.equal(state["linear.weight"], base.linear.weight)
    want = plain_loop(base, experts, "conv.weight", WEIGHTS).float()
    torch.testing.assert_close(state["conv.weight"], want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["embed.weight", "head.weight"])
def test_either_name_keeps_a_tied_tensor(name):
    base, experts = family(Tied)
    task_vectors = TaskVectors.from_modules(base, experts, [name])
    assert task_vectors.keys == ("body.weight", "body.bias")
    state = merged_state_dict(task_vectors, as_coefficients(task_vectors, WEIGHTS))
    assert torch.equal(state["head.weight"], base.embed.weight)


def test_tasks_follow_the_order_they_were_given_in():
    base, experts = family()
    turned = dict(reversed(experts.items()))
    straight = gram_matrices(TaskVectors.from_modules(base, experts)).values
    task_vectors = TaskVectors.from_modules(base, turned)
    assert task_vectors.tasks == TASKS[::-1]
    torch.testing.assert_close(gram_matrices(task_vectors).values, straight.flip(1, 2))


def test_include_and_exclude_choose_tensors():
    base, experts = family()
    task_vectors = TaskVectors.from_modules(base, experts)
    assert task_vectors.select((), ()) == task_vectors.keys
    assert task_vectors.select(["conv.*"], ["*.bias"]) == ("conv.weight",)


def test_a_one_expert_merge_with_coefficient_one_is_the_expert():
    base = Toy()
    expert = shifted(base, 3)
    task_vectors = TaskVectors.from_modules(base, {"only": expert})
    state = merged_state_dict(
        task_vectors, as_coefficients(task_vectors, torch.ones(1))
    )
    for key in task_vectors.keys:
        torch.testing.assert_close(
            state[key], expert.state_dict()[key], rtol=0, atol=1e-6
        )
