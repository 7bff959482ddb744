"""The solver replays what full-space descents recorded."""

import pytest
import torch
from torch import Tensor

from fusion_plugins.awd.functional import Descent, solve, solve_full_space

ROWS = 6
TASKS = 4
# The cosine over a flattened matrix is averaged over all tasks x tasks entries of its
# lower triangle, so its pairs weigh (T - 1) / 2T of what their plain mean weighs.
FLATTENED = {
    "shared_cosine": True,
    "orthogonality_weight": (TASKS - 1) / (2 * TASKS),
}
PER_ROW = {"orthogonality_weight": 1 / ROWS}
# Row 4 ends on a kink of |cos|, where float32 and float64 of one descent part.
SMOOTH_ROWS = [0, 1, 2, 3, 5]


def delta_of(task_vectors: Tensor, coefficients: Tensor) -> Tensor:
    """Rows of delta from task vectors (tasks, rows, columns) and c (rows, tasks)."""
    return torch.einsum("rt,trc->rc", coefficients, task_vectors.double())


def row_grams(task_vectors: Tensor) -> Tensor:
    by_row = task_vectors.double().transpose(0, 1)
    return by_row @ by_row.transpose(1, 2)


@pytest.fixture(scope="module")
def model(golden):
    return golden("awd_global")


@pytest.fixture(scope="module")
def rows(golden):
    return golden("awd_row")


def global_solution(model: dict[str, Tensor], iterations: int):
    vectors = model["task_vectors"]
    settings = Descent(model["alpha"].item(), model["lr"].item(), iterations)
    return solve((vectors @ vectors.T)[None], settings)


def row_settings(rows: dict[str, Tensor], variant: dict) -> Descent:
    names = ("alpha", "lr", "momentum", "weight_decay")
    numbers = {name: rows[name].item() for name in names}
    return Descent(iterations=int(rows["iters"]), **numbers, **variant)


def literal_row_descent(rows: dict[str, Tensor], dtype: torch.dtype):
    """The recorded per-row descent as plain autograd: delta, and its cosines."""
    task_vectors = rows["task_vectors"].to(dtype)
    common = torch.zeros_like(task_vectors[0]).requires_grad_()
    optimizer = torch.optim.SGD(
        [common],
        lr=rows["lr"].item(),
        momentum=rows["momentum"].item(),
        weight_decay=rows["weight_decay"].item(),
    )
    cosines = []
    for _ in range(int(rows["iters"])):
        rest = task_vectors - common
        unit = rest / rest.norm(dim=-1, keepdim=True)
        pairs = torch.einsum("irc,jrc->rij", unit, unit).tril(-1).abs()
        cosine = (pairs.sum((-1, -2)) / (TASKS * (TASKS - 1) / 2)).mean()
        loss = cosine + rows["alpha"].item() * common.norm(dim=-1).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cosines.append(cosine.item())
    return common.detach(), cosines


def test_global_delta_and_losses_at_every_recorded_step(model):
    steps = sorted(int(k.removeprefix("delta_")) for k in model if "delta_" in k)
    assert len(steps) >= 5 and steps[-1] == 300
    for step in steps:
        solution = global_solution(model, step)
        delta = solution.coefficients[0] @ model["task_vectors"]
        want = model[f"delta_{step}"]
        assert (delta - want).norm() <= 1e-8 * want.norm(), step
        torch.testing.assert_close(
            solution.losses[-1], model[f"loss_{step}"], rtol=1e-8, atol=1e-12
        )


def test_one_global_descent_passes_through_all_recorded_losses(model):
    losses = global_solution(model, 300).losses
    for step in (1, 2, 10, 100, 300):
        want = model[f"loss_{step}"]
        torch.testing.assert_close(losses[step], want, rtol=1e-8, atol=1e-12)


def test_flattened_cosine_with_row_norms(rows):
    solution = solve(row_grams(rows["task_vectors"]), row_settings(rows, FLATTENED))
    delta = delta_of(rows["task_vectors"], solution.coefficients)
    assert rows["common_none"].abs().max() > 0.01
    torch.testing.assert_close(
        delta, rows["common_none"].double(), rtol=0, atol=2e-5, check_dtype=False
    )


def test_cosine_per_row_away_from_the_kink(rows):
    solution = solve(row_grams(rows["task_vectors"]), row_settings(rows, PER_ROW))
    delta = delta_of(rows["task_vectors"], solution.coefficients)
    error = (delta - rows["common_row"]).abs().amax(dim=1)
    assert error[SMOOTH_ROWS].max() <= 2e-5
    # The kink shifts row 4, and no more than by steps across it.
    assert error[4] <= 1e-3


def test_the_kink_is_float32_not_the_solver(rows):
    """Both precisions of one literal descent bracket record and solver."""
    in_float32, _ = literal_row_descent(rows, torch.float32)
    torch.testing.assert_close(in_float32, rows["common_row"], rtol=0, atol=2e-5)
    in_float64, _ = literal_row_descent(rows, torch.float64)
    solution = solve(row_grams(rows["task_vectors"]), row_settings(rows, PER_ROW))
    delta = delta_of(rows["task_vectors"], solution.coefficients)
    assert (delta - in_float64).norm() <= 1e-8 * in_float64.norm()
    parted = (in_float32.double() - in_float64).abs().amax(dim=1)
    assert parted[SMOOTH_ROWS].max() <= 2e-5 < parted[4]


@pytest.mark.parametrize(
    ("name", "variant", "tolerance"),
    [("cos_row", PER_ROW, 1e-5), ("cos_none", FLATTENED, 2e-7)],
)
def test_recorded_cosines_are_before_the_first_and_last_step(
    rows, name, variant, tolerance
):
    solution = solve(row_grams(rows["task_vectors"]), row_settings(rows, variant))
    orthogonality = solution.losses[:, 1]
    got = orthogonality[[0, -2]]
    torch.testing.assert_close(got, rows[name], rtol=0, atol=tolerance)
    assert (orthogonality[-1] - rows[name][1]).abs() > tolerance


@pytest.mark.parametrize("variant", [PER_ROW, FLATTENED], ids=["row", "flattened"])
def test_both_solvers_agree_on_the_recorded_task_vectors(rows, variant):
    settings = row_settings(rows, variant)
    task_vectors = rows["task_vectors"].double()
    solution = solve(row_grams(task_vectors), settings)
    want, losses = solve_full_space(task_vectors.transpose(0, 1), settings)
    delta = delta_of(task_vectors, solution.coefficients)
    assert (delta - want).norm() <= 1e-8 * want.norm()
    torch.testing.assert_close(solution.losses, losses, rtol=1e-8, atol=1e-12)
