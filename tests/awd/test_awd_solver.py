"""The descent on inner products is the descent on delta, step by step."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fusion_plugins.awd import functional
from fusion_plugins.awd.full_space import solve_full_space
from fusion_plugins.awd.functional import Descent, solve

# Groups as a model, a tensor and a row have them: (groups, tasks, entries).
SHAPES = {"model": (1, 4, 900), "tensor": (5, 4, 120), "row": (24, 4, 16)}
SETTINGS = {
    "plain": Descent(),
    "small_alpha": Descent(alpha=0.01, lr=0.05),
    "momentum": Descent(alpha=0.02, momentum=0.9),
    "momentum_and_decay": Descent(alpha=0.01, momentum=0.9, weight_decay=1e-2),
    "weighted": Descent(alpha=0.01, orthogonality_weight=0.25),
    "shared_cosine": Descent(alpha=0.01, shared_cosine=True),
}


def random_vectors(shape, seed=0, norm=2.0) -> Tensor:
    """Task vectors that share a direction, of about the given norm."""
    generator = torch.Generator().manual_seed(seed)
    groups, _, entries = shape
    own = torch.randn(shape, generator=generator, dtype=torch.float64)
    shared = torch.randn(groups, 1, entries, generator=generator, dtype=torch.float64)
    return (own + shared) * norm / (2 * entries) ** 0.5


def gram_of(vectors: Tensor) -> Tensor:
    return vectors @ vectors.transpose(1, 2)


def delta_of(vectors: Tensor, coefficients: Tensor) -> Tensor:
    return torch.einsum("gt,gtc->gc", coefficients, vectors)


def assert_near(got: Tensor, want: Tensor, relative: float) -> None:
    assert want.norm() > 0
    assert (got - want).norm() <= relative * want.norm()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("iterations", [1, 10, 300])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equals_autograd_on_delta(shape, iterations, settings):
    settings = replace(settings, iterations=iterations)
    # A seed whose cosines do not settle at 0, where |cos| has a kink and every descent
    # amplifies rounding.
    vectors = random_vectors(shape, seed=1)
    solution = solve(gram_of(vectors), settings)
    delta, losses = solve_full_space(vectors, settings)
    assert_near(delta_of(vectors, solution.coefficients), delta, 1e-8)
    assert solution.losses.shape == (iterations + 1, 3)
    torch.testing.assert_close(solution.losses, losses, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("shared", [False, True], ids=["own_cosine", "shared_cosine"])
def test_gradient_is_autograd_of_the_literal_objective(shared):
    vectors = random_vectors((3, 4, 50))
    settings = Descent(alpha=0.3, orthogonality_weight=0.7, shared_cosine=shared)
    generator = torch.Generator().manual_seed(1)
    c = 0.3 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
    delta = delta_of(vectors, c).requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    parts = [vectors.transpose(0, 1).flatten(1)] if shared else list(vectors)
    moved = [delta.flatten()] if shared else list(delta)
    for tau, d in zip(parts, moved, strict=True):
        for i in range(4):
            for j in range(4):
                if i != j:
                    x, y = tau[i] - d, tau[j] - d
                    loss = loss + 0.7 * ((x @ y) / (x.norm() * y.norm())).abs() / 12
    for d in delta:
        loss = loss + 0.3 * d.norm()
    (want,) = torch.autograd.grad(loss, delta)
    gram = gram_of(vectors)
    got = delta_of(vectors, functional.gradient(gram, c, settings))
    assert_near(got, want, 1e-10)
    value = functional.objective(gram, c, settings)[:, 0].sum()
    torch.testing.assert_close(value, loss.detach(), rtol=1e-12, atol=0)


def test_per_group_weights_scale_each_groups_cosine_term():
    vectors = random_vectors((3, 4, 30))
    weights = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
    together = solve(gram_of(vectors), Descent(0.01, orthogonality_weight=weights))
    for group, weight in enumerate(weights.tolist()):
        alone = solve(
            gram_of(vectors[group : group + 1]),
            Descent(0.01, orthogonality_weight=weight),
        )
        assert_near(together.coefficients[group], alone.coefficients[0], 1e-12)


def test_disentangled_gram_is_the_gram_of_tau_minus_delta():
    vectors = random_vectors((2, 5, 40))
    c = torch.linspace(-1, 1, 10, dtype=torch.float64).view(2, 5)
    rest = vectors - delta_of(vectors, c)[:, None]
    got = functional.disentangled_gram(gram_of(vectors), c)
    torch.testing.assert_close(got, gram_of(rest), rtol=1e-12, atol=1e-12)
    got = functional.delta_norm(gram_of(vectors), c)
    torch.testing.assert_close(got, delta_of(vectors, c).norm(dim=1))


def test_one_expert_has_nothing_to_disentangle():
    solution = solve(gram_of(random_vectors((3, 1, 20))), Descent())
    assert not solution.coefficients.any() and not solution.losses.any()


def test_orthogonal_experts_stay_as_they_are():
    vectors = 3 * torch.eye(4, dtype=torch.float64)[None]
    solution = solve(gram_of(vectors), Descent(alpha=0.0, iterations=50))
    assert not solution.coefficients.any() and not solution.losses.any()
    delta, _ = solve_full_space(vectors, Descent(alpha=0.0, iterations=50))
    assert not delta.any()


def test_all_zero_experts_give_zero_and_no_nan():
    solution = solve(torch.zeros(2, 3, 3), Descent())
    assert not solution.coefficients.any() and not solution.losses.any()


@pytest.mark.parametrize("scales", [(1, 1, 1), (1, 2, 0.5), (1, -1, 1), (1, -1, -3)])
def test_parallel_experts_cannot_become_orthogonal_and_stay(scales):
    """|cos| is 1 along the whole line: only rounding may move delta, by a step."""
    settings = Descent(momentum=0.9)
    one = random_vectors((1, 1, 60))
    vectors = one * torch.tensor(scales, dtype=torch.float64)[None, :, None]
    solution = solve(gram_of(vectors), settings)
    step = settings.lr * settings.alpha / (1 - settings.momentum)
    assert delta_of(vectors, solution.coefficients).norm() <= 2 * step
    assert solution.coefficients.abs().max() <= 2 * step
    torch.testing.assert_close(
        solution.losses[:, 1], torch.ones(301, dtype=torch.float64)
    )


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("kind", ["twin", "sum", "opposite", "unchanged"])
def test_dependent_experts_follow_the_descent_with_small_coefficients(kind, settings):
    three = random_vectors((2, 3, 80), seed=3, norm=1.5)
    fourth = {
        "twin": three[:, :1],
        "sum": three[:, :1] + three[:, 1:2],
        "opposite": -three[:, :1],
        "unchanged": torch.zeros_like(three[:, :1]),
    }[kind]
    vectors = torch.cat([three, fourth], dim=1)
    settings = replace(settings, iterations=100)
    solution = solve(gram_of(vectors), settings)
    delta, _ = solve_full_space(vectors, settings)
    assert_near(delta_of(vectors, solution.coefficients), delta, 1e-8)
    assert solution.coefficients.abs().max() < 1


def test_opposite_pairs_do_not_let_cancelling_coefficients_grow():
    two = random_vectors((1, 2, 80))
    vectors = torch.cat([two, -two], dim=1)
    solution = solve(gram_of(vectors), Descent())
    assert solution.coefficients.abs().max() <= 2e-3
    assert delta_of(vectors, solution.coefficients).norm() <= 2e-3


@pytest.mark.parametrize("shared", [False, True], ids=["own_cosine", "shared_cosine"])
def test_an_unchanged_expert_leaves_the_others_descent_as_it_was(shared):
    """Its pairs count as orthogonal: the others' mean is over more pairs, no more."""
    three = random_vectors((1, 3, 80))
    with_zero = torch.cat([three, torch.zeros_like(three[:, :1])], dim=1)
    got = solve(gram_of(with_zero), Descent(0.01, shared_cosine=shared))
    want = solve(gram_of(three), Descent(0.01, orthogonality_weight=6 / 12))
    assert_near(got.coefficients[:, :3], want.coefficients, 1e-12)
    assert got.coefficients[0, 3] == 0


def test_the_paper_settings_make_typical_task_vectors_more_orthogonal():
    vectors = random_vectors((1, 8, 4000), norm=2.5)
    losses = solve(gram_of(vectors), Descent()).losses
    assert losses[0, 1] > 0.45 and losses[-1, 1] < 0.2
    assert losses[-1, 0] < losses[0, 0]


@pytest.mark.parametrize("scale", [0.25, 64.0])
def test_scale_free_delta_scales_with_the_task_vectors(scale):
    gram = gram_of(random_vectors(SHAPES["tensor"]))
    want = solve(functional.scale_free(gram), Descent())
    scaled = solve(functional.scale_free(gram * scale**2), Descent())
    assert torch.equal(scaled.coefficients, want.coefficients)
    torch.testing.assert_close(
        functional.delta_norm(gram * scale**2, scaled.coefficients),
        scale * functional.delta_norm(gram, want.coefficients),
    )
    plain = solve(gram * scale**2, Descent()).coefficients
    assert (plain - want.coefficients).norm() > 1e-3 * want.coefficients.norm()


def test_scale_free_makes_the_mean_norm_one_and_survives_zero():
    gram = gram_of(random_vectors(SHAPES["tensor"], norm=7.0))
    gram[0] = 0
    norms = functional.scale_free(gram).diagonal(dim1=1, dim2=2).sqrt().mean(1)
    want = torch.ones(5, dtype=torch.float64)
    want[0] = 0
    torch.testing.assert_close(norms, want)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_stationary_threshold_is_the_slope_of_the_cosine_term_at_zero(shape):
    vectors = random_vectors(shape)
    settings = Descent(alpha=123.0, orthogonality_weight=0.5)
    got = functional.stationary_threshold(gram_of(vectors), settings)
    one_step = replace(settings, alpha=0.0, lr=1.0, iterations=1)
    delta, _ = solve_full_space(vectors, one_step)
    torch.testing.assert_close(got, delta.norm(dim=1), rtol=1e-10, atol=0)


def test_delta_leaves_zero_only_below_the_threshold():
    gram = gram_of(random_vectors(SHAPES["model"]))
    threshold = functional.stationary_threshold(gram, Descent()).item()
    assert threshold > 0.01

    def moved(factor: float) -> tuple[float, float]:
        settings = Descent(alpha=factor * threshold, iterations=400)
        solution = solve(gram, settings)
        norm = functional.delta_norm(gram, solution.coefficients).item()
        return norm, settings.lr * settings.alpha

    above, step = moved(1.02)
    assert above <= 2 * step  # it trembles between the steps of the two terms
    below, step = moved(0.5)
    assert below > 20 * step


def test_merged_coefficients_are_the_merge_of_disentangled_vectors():
    vectors = random_vectors((1, 4, 50))[0]
    c = torch.tensor([0.1, -0.2, 0.3, 0.05], dtype=torch.float64)
    weights = torch.tensor([0.3, 0.7, -0.1, 0.4], dtype=torch.float64)
    delta = sum(ck * tau for ck, tau in zip(c, vectors, strict=True))
    want = sum(w * (tau - delta) for w, tau in zip(weights, vectors, strict=True))
    folded = functional.merged_coefficients(weights, c)
    torch.testing.assert_close(folded @ vectors, want, rtol=0, atol=1e-14)


def test_merged_coefficients_take_many_rows_and_gradients():
    c = torch.rand(6, 4, dtype=torch.float64).requires_grad_()
    weights = torch.rand(6, 4, dtype=torch.float64).requires_grad_()
    together = functional.merged_coefficients(weights, c)
    for row in range(6):
        alone = functional.merged_coefficients(weights[row], c[row])
        torch.testing.assert_close(together[row], alone)
    assert torch.autograd.gradcheck(functional.merged_coefficients, (weights, c))


def test_tolerance_stops_early_and_changes_no_iterate():
    gram = gram_of(random_vectors(SHAPES["model"]))
    full = solve(gram, Descent(alpha=0.01, iterations=1000)).losses
    early = solve(gram, Descent(alpha=0.01, iterations=1000, tolerance=1e-3))
    steps = len(early.losses) - 1
    assert 10 <= steps < 900
    assert torch.equal(early.losses, full[: steps + 1])
    again = solve(gram, Descent(alpha=0.01, iterations=steps))
    assert torch.equal(early.coefficients, again.coefficients)
    change = full[:, 0].diff().abs() / full[:-1, 0]
    assert change[steps - 10 : steps].max() < 1e-3
    assert all(change[k - 10 : k].max() >= 1e-3 for k in range(10, steps))


def test_on_step_sees_every_loss_in_order():
    seen = []
    solution = solve(
        gram_of(random_vectors(SHAPES["tensor"])),
        Descent(iterations=7),
        lambda step, loss: seen.append((step, loss)),
    )
    assert [step for step, _ in seen] == list(range(7))
    assert torch.equal(torch.stack([loss for _, loss in seen]), solution.losses[1:])


def test_no_iterations_leave_delta_at_zero():
    solution = solve(gram_of(random_vectors((1, 3, 9))), Descent(iterations=0))
    assert not solution.coefficients.any() and solution.losses.shape == (1, 3)


def test_the_solvers_leave_their_input_alone():
    vectors = random_vectors((2, 3, 20))
    gram = gram_of(vectors)
    before = gram.clone(), vectors.clone()
    solve(gram, Descent(iterations=5))
    solve_full_space(vectors, Descent(iterations=5))
    assert torch.equal(gram, before[0]) and torch.equal(vectors, before[1])


def test_float32_inner_products_are_solved_in_float64():
    gram = gram_of(random_vectors((1, 4, 60))).float()
    got = solve(gram, Descent())
    assert got.coefficients.dtype == torch.float64
    assert torch.equal(got.coefficients, solve(gram.double(), Descent()).coefficients)


BAD_GRAMS = {
    "one matrix": (torch.eye(3), r"shape \(3, 3\), expected \(groups, tasks, tasks\)"),
    "not square": (torch.ones(2, 3, 4), r"shape \(2, 3, 4\), expected \(groups"),
    "nan": (torch.full((1, 2, 2), torch.nan), "NaN or Inf: check the task vectors"),
    "inf": (torch.full((1, 2, 2), torch.inf), "NaN or Inf: check the task vectors"),
}


@pytest.mark.parametrize("call", [solve, functional.stationary_threshold])
@pytest.mark.parametrize(("gram", "message"), BAD_GRAMS.values(), ids=BAD_GRAMS)
def test_bad_gram_matrices_are_refused(call, gram, message):
    with pytest.raises(ValueError, match=message):
        call(gram, Descent())
