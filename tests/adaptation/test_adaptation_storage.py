"""How task vectors are kept: precision, chunks, offloading, trimming."""

import pytest
import torch
from toy_engine import Normed, Plain, Tied, learned, make_engine, models

from fusion_plugins.adaptation import MergedWeights, layers, quantised
from fusion_plugins.task_vectors import TaskVectors
from fusion_plugins.task_vectors.ties import magnitude_threshold, ties_trim_

# Largest difference of a coefficient after 10 Adam steps of 1e-2, which move
# coefficients by up to 0.1. Measured: 1.9e-4 and 3.5e-3.
HALF_BOUNDS = {"float16": 1e-3, "bfloat16": 1e-2, "int8": 1e-2, "int4": 5e-2}


@pytest.mark.parametrize("kind", [Plain, Tied, Normed])
@pytest.mark.parametrize("storage", HALF_BOUNDS)
def test_half_precision_task_vectors_stay_close(kind, storage):
    exact = learned(make_engine(kind))
    rounded = learned(make_engine(kind, storage=storage))
    assert (exact - 0.3).abs().max() > 0.05
    difference = (exact - rounded).abs().max().item()
    assert 0 < difference <= HALF_BOUNDS[storage]


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("chunk", [1, 7, 2**20])
def test_streamed_task_vectors_give_the_resident_result(monkeypatch, storage, chunk):
    """The path of offloaded task vectors, forced on where there is no accelerator."""
    resident = learned(make_engine(storage=storage))
    monkeypatch.setattr(layers, "_CHUNK", chunk)
    monkeypatch.setattr(quantised, "_READ", chunk)
    engine = make_engine(storage=storage)
    engine.weights._offload = True
    torch.testing.assert_close(learned(engine), resident, rtol=0, atol=1e-6)


def test_offloading_means_nothing_where_the_model_is_on_the_cpu():
    base, experts = models(Plain)
    task_vectors = TaskVectors.from_modules(base, experts)
    kept = MergedWeights(base, task_vectors, "cpu", offload=True)
    assert not kept._offload and not kept.stacks[0].is_pinned()


def test_a_half_precision_module_holds_rounded_merged_weights():
    base, experts = models(Plain, torch.float16)
    exact, _ = models(Plain, torch.float16)
    kept = MergedWeights(base, TaskVectors.from_modules(exact, experts))
    coefficients = torch.full((3, len(kept.keys)), 0.25)
    kept.materialise(coefficients)
    for key, value in base.state_dict().items():
        start = exact.state_dict()[key].float()
        changes = [e.state_dict()[key].float() - start for e in experts.values()]
        want = (start + 0.25 * sum(changes)).half()
        torch.testing.assert_close(value, want, rtol=1e-3, atol=1e-4)


def test_norms_are_those_of_the_task_vectors():
    base, experts = models(Plain)
    kept = MergedWeights(base, TaskVectors.from_modules(models(Plain)[0], experts))
    for norm, expert in zip(kept.norms(), experts.values(), strict=True):
        before = dict(models(Plain)[0].named_parameters())
        squares = sum(
            (p - before[n]).square().sum() for n, p in expert.named_parameters()
        )
        assert norm == pytest.approx(squares.sqrt().item(), rel=1e-6)


def test_a_nan_in_an_expert_is_named():
    base, experts = models(Plain)
    experts["task1"].out.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="expert 'task1': tensor 'out.weight' holds 1"):
        MergedWeights(base, TaskVectors.from_modules(models(Plain)[0], experts))


def upstream_trim(task_vectors: torch.Tensor, keep: float) -> torch.Tensor:
    """AdaMerging++'s task vectors by FusionBench's copy of the authors' functions."""
    from fusion_bench.method.ties_merging.ties_merging_utils import (
        disjoint_merge_split,
        resolve_sign,
        topk_values_mask,
    )

    kept, *_ = topk_values_mask(task_vectors.clone(), K=keep)
    selected, _ = disjoint_merge_split(kept, "sum", resolve_sign(kept))
    return selected


def random_vectors(case: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(4, 1000, generator=generator)
    if case == "ties in magnitude":  # many equal ones, also at the threshold
        values = torch.randint(-4, 5, (4, 1000), generator=generator) / 2
    if case == "zero sums":  # entries whose sum is zero: resolved by the majority
        values[2:, ::3] = -values[:2, ::3]
        values[:, 1::3] += 0.2
    if case == "drawn majority":  # no sign wins over all entries
        values[2:] = -values[:2]
    return values


@pytest.mark.parametrize(
    "case", ["random", "ties in magnitude", "zero sums", "drawn majority"]
)
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.999])
def test_trimming_equals_upstreams_functions(case, keep):
    vectors = random_vectors(case)
    want = upstream_trim(vectors, keep)
    stacks = [part.clone() for part in vectors.split([100, 1, 650, 249], dim=1)]
    ties_trim_(stacks, keep)
    got = torch.cat(stacks, dim=1)
    assert (got == 0).any() and (got != 0).any()
    assert torch.equal(got, want)


def test_trimming_keeps_the_share_it_says():
    values = torch.arange(1.0, 11)
    threshold = magnitude_threshold([values[:4], -values[4:].view(2, 3)], 0.2)
    assert threshold == 8  # position 10 - 2, counted from 1: kept as well
    with pytest.raises(ValueError, match="keep_ratio is 1.5, expected a share"):
        magnitude_threshold([values], 1.5)
