"""The merge from files to files gives the numbers of the merges in memory."""

from pathlib import Path

import pytest
import torch
from fusion_bench.method import (
    SimpleAverageAlgorithm,
    TaskArithmeticAlgorithm,
    TiesMergingAlgorithm,
)
from fusion_bench.modelpool import CausalLMPool
from tiny_llamas import merge, merged_files
from torch import Tensor

from fusion_plugins import AWDAlgorithm, TaskVectors
from fusion_plugins.awd.disentangle import disentangle
from fusion_plugins.awd.functional import Descent
from fusion_plugins.pools import load_task_vectors
from fusion_plugins.streaming.ties import TiesStatistics, ties_block_, ties_statistics
from fusion_plugins.task_vectors import blocks
from fusion_plugins.task_vectors.ties import magnitude_threshold, ties_trim_

AWD = {"alpha": 1e-3, "lr": 0.1, "iterations": 30}
BFLOAT16 = {"model_kwargs": {"torch_dtype": "bfloat16"}}


def pool_of(folders: dict[str, str], **options) -> CausalLMPool:
    return CausalLMPool(folders, tokenizer=None, **options)


def same(got: dict[str, Tensor], want: dict[str, Tensor], atol: float = 0.0) -> None:
    assert set(got) == set(want) and want
    for name, value in want.items():
        assert got[name].dtype == value.dtype, name
        torch.testing.assert_close(got[name], value, rtol=0, atol=atol)


def differ(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max((first[n] - second[n]).abs().max().item() for n in first)


@pytest.mark.parametrize("granularity", ["model", "tensor", "row"])
@pytest.mark.parametrize("family", ["llamas", "tied_llamas"])
def test_awd_is_that_in_memory_to_the_bit(request, tmp_path, family, granularity):
    folders = request.getfixturevalue(family)
    options = AWD | {"granularity": granularity}
    got = merge(folders, tmp_path / "out", **options).state_dict()
    want = AWDAlgorithm(**options).run(folders).state_dict()
    same(got, want)
    assert differ(want, AWDAlgorithm(iterations=0).run(folders).state_dict()) > 1e-4


def test_several_threads_and_small_blocks_change_nothing(llamas, tmp_path, monkeypatch):
    want = merge(llamas, tmp_path / "one", iterations=0)
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", 40)
    torch.set_num_threads(3)
    try:
        got = merge(llamas, tmp_path / "three", iterations=0)
    finally:
        torch.set_num_threads(1)
    same(got.state_dict(), want.state_dict(), 1e-7)


def test_without_iterations_it_is_fusion_benchs_task_arithmetic(llamas, tmp_path):
    base = TaskArithmeticAlgorithm(scaling_factor=0.4)
    got = merge(llamas, tmp_path / "out", base=base, iterations=0)
    want = TaskArithmeticAlgorithm(scaling_factor=0.4).run(pool_of(llamas))
    same(got.state_dict(), want.state_dict(), 1e-6)


def test_without_iterations_it_is_fusion_benchs_simple_average(llamas, tmp_path):
    base = SimpleAverageAlgorithm()
    got = merge(llamas, tmp_path / "out", base=base, iterations=0)
    experts = {k: v for k, v in llamas.items() if k != "_pretrained_"}
    want = SimpleAverageAlgorithm().run(pool_of(experts))
    same(got.state_dict(), want.state_dict(), 1e-6)


@pytest.mark.parametrize("merge_func", ["sum", "mean", "max"])
def test_ties_is_fusion_benchs(llamas, tmp_path, merge_func, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", 100)
    base = TiesMergingAlgorithm(0.3, 20, [], merge_func)
    got = merge(llamas, tmp_path / "out", base=base, iterations=0)
    want = TiesMergingAlgorithm(0.3, 20, [], merge_func).run(pool_of(llamas))
    same(got.state_dict(), want.state_dict(), 1e-6)


def stacks_of(task_vectors: TaskVectors) -> dict[str, Tensor]:
    """Whole task vectors, tensor by tensor, shape (tasks, entries)."""
    parts: dict[str, list[Tensor]] = {key: [] for key in task_vectors.keys}
    for block in task_vectors.blocks():
        parts[block.key].append(block.task_vectors.flatten(1).clone())
    return {key: torch.cat(values, dim=1) for key, values in parts.items()}


@pytest.mark.parametrize("keep_ratio", [0.01, 0.2, 0.5, 1.0])
def test_ties_thresholds_are_exact(bfloat16_llamas, keep_ratio):
    task_vectors = load_task_vectors(bfloat16_llamas)[1]
    found = ties_statistics(task_vectors, keep_ratio)
    stacks = list(stacks_of(task_vectors).values())
    for task, threshold in enumerate(found.thresholds):
        want = magnitude_threshold([stack[task] for stack in stacks], keep_ratio)
        assert threshold == want
    # All entries kept means down to the entries that did not move at all.
    assert len(set(found.thresholds.tolist())) == (1 if keep_ratio == 1 else 3)


@pytest.mark.parametrize("granularity", ["model", "row"])
def test_ties_takes_disentangled_task_vectors(tied_llamas, tmp_path, granularity):
    """A reference in memory: tied weights count once, as everywhere in this package."""
    options = AWD | {"granularity": granularity}
    base = TiesMergingAlgorithm(0.5, 20, [], "sum")
    merge(tied_llamas, tmp_path / "out", base=base, **options)
    got = merged_files(tmp_path / "out")
    task_vectors = load_task_vectors(tied_llamas)[1]
    settings = Descent(AWD["alpha"], AWD["lr"], AWD["iterations"])
    found = disentangle(task_vectors, settings, granularity=granularity)
    stacks = stacks_of(task_vectors)
    plain = {key: stack.clone() for key, stack in stacks.items()}
    for key, stack in stacks.items():
        found.subtract_(key, stack)
    assert any(not torch.allclose(plain[key], stacks[key]) for key in stacks)
    ties_trim_(list(stacks.values()), 0.2)
    for key, stack in stacks.items():
        merged = task_vectors.base(key).flatten() + 0.5 * stack.sum(dim=0)
        torch.testing.assert_close(got[key].flatten(), merged, rtol=0, atol=1e-6)


@pytest.mark.parametrize("majority", [-1.0, 0.0, 1.0])
def test_exact_draws_take_the_majority_sign(majority):
    stack = torch.tensor([[2.0, -1.0, 3.0], [-2.0, 1.0, 3.0], [0.5, 0.0, 0.1]])
    statistics = TiesStatistics(torch.tensor([1.0] * 3), torch.tensor(majority))
    sign = 1.0 if majority > 0 else -1.0  # no majority counts as negative
    want = torch.tensor([2 * sign, sign, 6.0])
    assert torch.equal(ties_block_(stack, statistics), want)


def test_the_majority_counts_every_elected_sign():
    base = torch.nn.Linear(4, 1, bias=False)
    base.weight.data.zero_()
    experts = {}
    for task, row in {"a": [1.0, 1.0, -1.0, 2.0], "b": [1.0, 2.0, -3.0, -2.0]}.items():
        experts[task] = torch.nn.Linear(4, 1, bias=False)
        experts[task].weight.data.copy_(torch.tensor([row]))
    task_vectors = TaskVectors.from_modules(base, experts)
    assert ties_statistics(task_vectors, 1.0).majority == 1
    for expert in experts.values():
        expert.weight.data.neg_()
    assert ties_statistics(task_vectors, 1.0).majority == -1


def test_bfloat16_models_are_merged_in_float32_and_rounded_once(
    bfloat16_llamas, tmp_path
):
    merge(bfloat16_llamas, tmp_path / "wide", dtype="float32", **AWD)
    merge(bfloat16_llamas, tmp_path / "same", **AWD)
    wide, same_dtype = merged_files(tmp_path / "wide"), merged_files(tmp_path / "same")
    assert {v.dtype for v in wide.values()} == {torch.float32}
    same(same_dtype, {name: value.bfloat16() for name, value in wide.items()})
    in_memory = AWDAlgorithm(**AWD).run(pool_of(bfloat16_llamas, **BFLOAT16))
    same(same_dtype, in_memory.state_dict())


def test_the_pools_dtype_is_that_of_the_result(llamas, tmp_path):
    model = merge(pool_of(llamas, **BFLOAT16), tmp_path / "out", iterations=0)
    assert model.dtype == torch.bfloat16
    assert model.config.torch_dtype == torch.bfloat16
    model = merge(
        pool_of(llamas, **BFLOAT16), tmp_path / "own", iterations=0, dtype="float32"
    )
    assert model.dtype == torch.float32


def test_kept_tensors_are_those_of_the_base(llamas, tmp_path):
    keep = ["*norm*", "lm_head.weight"]
    merge(llamas, tmp_path / "out", iterations=0, keep=keep, dtype="float16")
    got, base = merged_files(tmp_path / "out"), merged_files(
        Path(llamas["_pretrained_"])
    )
    kept = {n for n in base if "norm" in n or n == "lm_head.weight"}
    assert 3 < len(kept) < len(base)
    for name, value in base.items():
        assert torch.equal(got[name], value.half()) == (name in kept), name
