"""The solver replays what full-space descents recorded."""

import literal
import pytest
import torch
from recordings import OLD_SUMS, TOLERANCE, assert_recorded, load, nudge
from torch import Tensor

from fusion_plugins.awd.full_space import solve_full_space
from fusion_plugins.awd.functional import Descent, solve

# A variant of the recorded per-row descents -> how far its cosines may be off.
VARIANTS = {"row": 1e-5, "none": 2e-7}


def delta_of(task_vectors: Tensor, coefficients: Tensor) -> Tensor:
    """Rows of delta from task vectors (tasks, rows, columns) and c (rows, tasks)."""
    return torch.einsum("rt,trc->rc", coefficients, task_vectors.double())


def row_grams(task_vectors: Tensor) -> Tensor:
    by_row = task_vectors.double().transpose(0, 1)
    return by_row @ by_row.transpose(1, 2)


@pytest.fixture(scope="module")
def model() -> dict[str, Tensor]:
    return load("awd_global")


@pytest.fixture(scope="module")
def rows() -> dict[str, Tensor]:
    return load("awd_row")


def recorded_steps(model: dict[str, Tensor]) -> list[int]:
    steps = [int(k.removeprefix("delta_")) for k in model if k.startswith("delta_")]
    assert steps
    return sorted(steps)


def global_solution(model: dict[str, Tensor], iterations: int):
    vectors = model["task_vectors"]
    settings = Descent(model["alpha"].item(), model["lr"].item(), iterations)
    return solve((vectors @ vectors.T)[None], settings)


def row_settings(rows: dict[str, Tensor], variant: str) -> Descent:
    names = ("alpha", "lr", "momentum", "weight_decay")
    numbers = {name: rows[name].item() for name in names}
    tasks, count, _ = rows["task_vectors"].shape
    # The cosine over a flattened matrix is averaged over all tasks x tasks entries of
    # its lower triangle, so its pairs weigh (T - 1) / 2T of what their plain mean weighs.
    weight = {"row": 1 / count, "none": (tasks - 1) / (2 * tasks)}[variant]
    return Descent(
        iterations=int(rows["iters"]),
        orthogonality_weight=weight,
        shared_cosine=variant == "none",
        **numbers,
    )


def test_global_delta_and_losses_at_every_recorded_step(model):
    for step in recorded_steps(model):
        solution = global_solution(model, step)
        delta = solution.coefficients[0] @ model["task_vectors"]
        want = model[f"delta_{step}"]
        assert (delta - want).norm() <= 1e-8 * want.norm(), step
        torch.testing.assert_close(
            solution.losses[-1], model[f"loss_{step}"], rtol=1e-8, atol=1e-12
        )


def test_one_global_descent_passes_through_all_recorded_losses(model):
    steps = recorded_steps(model)
    losses = global_solution(model, steps[-1]).losses
    for step in steps:
        want = model[f"loss_{step}"]
        torch.testing.assert_close(losses[step], want, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_delta_and_cosines_per_row_and_flattened(rows, variant):
    """The cosines are those before the first and before the last step."""
    solution = solve(row_grams(rows["task_vectors"]), row_settings(rows, variant))
    delta = delta_of(rows["task_vectors"], solution.coefficients)
    (in_float32, cosines_32), (in_float64, cosines_64) = (
        literal.awd_row(rows, variant, d) for d in (torch.float32, torch.float64)
    )
    want, runs = rows[f"common_{variant}"], [in_float32, in_float64]
    if OLD_SUMS:  # which may end on the other side of a kink
        runs.append(literal.awd_row(nudge(rows, seed=2), variant, torch.float64)[0])
    assert want.abs().max() > TOLERANCE
    assert_recorded(delta, want, tuple(runs))
    assert (delta - in_float64).norm() <= 1e-8 * in_float64.norm()
    assert_recorded(
        solution.losses[[0, -2], 1],
        rows[f"cos_{variant}"],
        (cosines_32, cosines_64),
        VARIANTS[variant],
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_solvers_agree_on_the_recorded_task_vectors(rows, variant):
    settings = row_settings(rows, variant)
    task_vectors = rows["task_vectors"].double()
    solution = solve(row_grams(task_vectors), settings)
    want, losses = solve_full_space(task_vectors.transpose(0, 1), settings)
    delta = delta_of(task_vectors, solution.coefficients)
    assert (delta - want).norm() <= 1e-8 * want.norm()
    torch.testing.assert_close(solution.losses, losses, rtol=1e-8, atol=1e-12)
