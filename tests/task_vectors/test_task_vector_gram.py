"""Inner products of task vectors against explicit sums."""

import pytest
import torch
from torch import Tensor
from toy_models import TASKS, Tied, Toy, family, from_family, shifted, vectors

from fusion_plugins.awd.disentangle import disentangle_gram
from fusion_plugins.awd.functional import Descent
from fusion_plugins.task_vectors import (
    GramMatrices,
    StateDictCheckpoint,
    TaskVectors,
    blocks,
    cosine_matrix,
    gram,
    gram_matrices,
)

FLOATS = ("scale", "empty", "conv.weight", "conv.bias", "norm.weight", "norm.bias")
FLOATS += ("norm.running_mean", "norm.running_var", "linear.weight", "linear.bias")


def explicit(base, experts, key: str, by_row: bool) -> Tensor:
    tau = vectors(base, experts, key)
    if by_row and tau.dim() > 2:
        return torch.einsum("irc,jrc->rij", tau.flatten(2), tau.flatten(2))
    tau = tau.reshape(len(tau), -1)
    return torch.einsum("ic,jc->ij", tau, tau)[None]


def close(got: Tensor, want: Tensor) -> None:
    # Task vectors are float32 differences, their products are float64.
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


def test_walks_every_float_tensor_once_and_no_counter():
    assert sorted(from_family().keys) == sorted(FLOATS)
    assert from_family(Tied).keys == ("embed.weight", "body.weight", "body.bias")


@pytest.mark.parametrize("key", FLOATS)
def test_tensor_and_row_grams_of_every_kind_of_tensor(key):
    base, experts = family()
    task_vectors = TaskVectors.from_modules(base, experts)
    for granularity in ("tensor", "row"):
        gram = gram_matrices(task_vectors, granularity)
        got = gram.values[gram.group_slice(key)]
        assert got.dtype == torch.float64
        if granularity == "row" and key == "empty":
            assert got.shape == (0, 3, 3)
        else:
            close(got, explicit(base, experts, key, granularity == "row"))


def test_row_groups_are_rows_of_matrices_and_whole_vectors():
    gram = gram_matrices(from_family(), "row")
    groups = dict(zip(gram.keys, gram.groups, strict=True))
    assert groups["conv.weight"] == 5 and groups["linear.weight"] == 4
    assert groups["conv.bias"] == groups["scale"] == 1 and groups["empty"] == 0
    assert len(gram.values) == sum(gram.groups)


def test_model_gram_and_every_total_are_the_sum_over_tensors():
    base, experts = family()
    task_vectors = TaskVectors.from_modules(base, experts)
    want = sum(explicit(base, experts, key, False)[0] for key in FLOATS)
    for granularity in ("model", "tensor", "row"):
        close(gram_matrices(task_vectors, granularity).total(), want)
    assert gram_matrices(task_vectors, "model").values.shape == (1, 3, 3)


def test_only_the_keys_asked_for_are_walked():
    base, experts = family()
    task_vectors = TaskVectors.from_modules(base, experts)
    gram = gram_matrices(task_vectors, "model", ["conv.bias", "scale"])
    want = explicit(base, experts, "conv.bias", False)
    close(gram.values, want + explicit(base, experts, "scale", False))


@pytest.mark.parametrize("entries", [1, 7, 13])
@pytest.mark.parametrize("granularity", ["model", "tensor", "row"])
def test_small_blocks_give_the_same_inner_products(monkeypatch, granularity, entries):
    task_vectors = from_family()
    want = gram_matrices(task_vectors, granularity)
    whole = sum(1 for _ in task_vectors.blocks())
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", entries)
    assert sum(1 for _ in task_vectors.blocks()) > whole
    got = gram_matrices(task_vectors, granularity)
    assert got.groups == want.groups
    torch.testing.assert_close(got.values, want.values, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("entries", [1, 6, 40])
@pytest.mark.parametrize("granularity", ["model", "tensor", "row"])
def test_products_of_few_entries_at_once_add_up(monkeypatch, granularity, entries):
    want = gram_matrices(from_family(), granularity)
    monkeypatch.setattr(gram, "_ENTRIES", entries)
    got = gram_matrices(from_family(), granularity)
    assert got.groups == want.groups
    torch.testing.assert_close(got.values, want.values, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("base_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_checkpoints_of_other_precisions_lose_nothing_more(base_dtype, dtype):
    base, experts = family()
    base.to(base_dtype)
    experts = {task: expert.to(dtype) for task, expert in experts.items()}
    task_vectors = TaskVectors.from_modules(base, experts)
    for key in ("conv.weight", "scale"):
        gram = gram_matrices(task_vectors, "tensor", [key])
        exact = 1e-13 if dtype == torch.float64 else 1e-6
        want = explicit(base, experts, key, False)
        torch.testing.assert_close(gram.values, want, rtol=exact, atol=exact * 1e-2)


def test_float64_differences_are_not_rounded_to_float32():
    base = Toy().double()
    experts = {t: shifted(base, s, 1e-9) for s, t in enumerate(TASKS)}
    gram = gram_matrices(TaskVectors.from_modules(base, experts), "model")
    want = sum(explicit(base, experts, key, False) for key in FLOATS)
    torch.testing.assert_close(gram.values, want, rtol=1e-10, atol=0)
    assert want.diagonal(dim1=1, dim2=2).min() > 0


LONG = 200_000  # columns; float32 sums of their squares would be off in the fifth digit


def long_vectors(kind: str) -> Tensor:
    """Task vectors of five tasks, shape (tasks, columns); the last two are dependent."""
    torch.manual_seed(0)
    free = {
        "random": torch.randn(3, LONG) * 1e-3,
        "constant": torch.tensor([0.1, 0.2, 0.3])[:, None].expand(3, LONG),
        "growing": torch.linspace(0, 1e-3, 3 * LONG).view(3, LONG),
        "tiny": torch.randn(3, LONG) * 1e-25,
        "huge": torch.randn(3, LONG) * 1e17,
    }[kind]
    return torch.cat([free, free[:1], free[:1] + free[1:2]])


def gram_of(tau: Tensor) -> Tensor:
    base, *experts = (
        StateDictCheckpoint({"w": row}, "model") for row in (torch.zeros(LONG), *tau)
    )
    named = {str(n): expert for n, expert in enumerate(experts)}
    return gram_matrices(TaskVectors(base, named)).values[0]


def error(got: Tensor, tau: Tensor) -> float:
    """Largest, in units of the vectors' norms."""
    want = tau.double() @ tau.double().T
    norms = want.diagonal().sqrt()
    return ((got - want).abs() / (norms[:, None] * norms)).max().item()


@pytest.mark.parametrize(
    ("kind", "bound"),
    [("random", 1e-8), ("constant", 3e-7), ("growing", 1e-7)]
    # Squares that float32 cannot hold are taken in float64.
    + [("tiny", 1e-14), ("huge", 1e-14)],
)
def test_thousands_of_columns_are_accumulated_in_float64(kind, bound):
    tau = long_vectors(kind)
    assert error(gram_of(tau), tau) < bound


@pytest.mark.parametrize("how", ["autocast", "legacy", "backend"])
def test_inner_products_stay_exact_where_products_may_be_coarse(how):
    """bfloat16 has three digits."""
    tau = long_vectors("random")
    if how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            assert error(gram_of(tau), tau) < 1e-8
        return
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    if how == "legacy":
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            assert error(gram_of(tau), tau) < 1e-14
        finally:
            torch.set_float32_matmul_precision(before)
    elif matmul is None:
        pytest.skip("this torch has one setting for all")
    else:
        before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
        try:
            assert error(gram_of(tau), tau) < 1e-14
        finally:
            matmul.fp32_precision = before


@pytest.mark.parametrize("alpha", [0.0, 1e-4, 1e-2])
def test_the_redundant_vector_of_dependent_experts_hardly_feels_it(alpha, monkeypatch):
    """The same descent on products of float64, with a Gram matrix of rank 3 of 5."""
    tau = long_vectors("random").double()
    tasks, settings = tuple("abcde"), Descent(alpha=alpha, iterations=300)

    def delta() -> Tensor:
        values = gram_of(tau.float())[None]
        gram = GramMatrices("model", ("w",), (1,), values)
        return disentangle_gram(tasks, gram, settings).delta_coefficients("w") @ tau

    fast = delta()
    monkeypatch.setattr("fusion_plugins.task_vectors.gram._LARGE", 2 * LONG)
    exact = delta()
    assert exact.norm() > 0.01 * tau[0].norm()
    assert (fast - exact).norm() < 1e-6 * tau[0].norm()


def test_cosines_of_a_zero_vector_are_zero():
    tau = torch.tensor([[3.0, 4.0], [4.0, -3.0], [0.0, 0.0], [-6.0, -8.0]]).double()
    want = torch.tensor([[1, 0, 0, -1], [0, 1, 0, 0], [0, 0, 0, 0], [-1, 0, 0, 1]])
    got = cosine_matrix(tau @ tau.T)
    torch.testing.assert_close(got, want.double(), rtol=0, atol=1e-15)
