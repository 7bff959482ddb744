"""The solver replays what full-space descents recorded."""

import pytest
import torch
from recordings import load
from torch import Tensor

from fusion_plugins.awd.full_space import solve_full_space
from fusion_plugins.awd.functional import Descent, solve

# How far float32 lets two runs of one descent part, away from the kinks of |cos|.
CLOSE = 2e-5


def variant(rows: dict[str, Tensor], name: str) -> dict:
    """What the recorded code's objective is in the solver's terms."""
    tasks, height, _ = rows["task_vectors"].shape
    if name == "row":
        return {"orthogonality_weight": 1 / height}
    # The cosine over a flattened matrix is averaged over all tasks x tasks entries of
    # its lower triangle: its pairs weigh (T - 1) / 2T of what their plain mean weighs.
    return {"shared_cosine": True, "orthogonality_weight": (tasks - 1) / (2 * tasks)}


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
    return sorted(int(k.removeprefix("delta_")) for k in model if "delta_" in k)


def global_solution(model: dict[str, Tensor], iterations: int):
    vectors = model["task_vectors"]
    settings = Descent(model["alpha"].item(), model["lr"].item(), iterations)
    return solve((vectors @ vectors.T)[None], settings)


def row_settings(rows: dict[str, Tensor], name: str) -> Descent:
    options = ("alpha", "lr", "momentum", "weight_decay")
    numbers = {key: rows[key].item() for key in options}
    return Descent(iterations=int(rows["iters"]), **numbers, **variant(rows, name))


def literal_row_descent(rows: dict[str, Tensor], dtype: torch.dtype):
    """The recorded per-row descent as plain autograd: delta, and its cosines."""
    task_vectors = rows["task_vectors"].to(dtype)
    tasks = len(task_vectors)
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
        cosine = (pairs.sum((-1, -2)) / (tasks * (tasks - 1) / 2)).mean()
        loss = cosine + rows["alpha"].item() * common.norm(dim=-1).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cosines.append(cosine.item())
    return common.detach(), cosines


def test_global_delta_and_losses_at_every_recorded_step(model):
    steps = recorded_steps(model)
    assert len(steps) > 1 and model[f"delta_{steps[-1]}"].norm() > 1e-3
    for step in steps:
        solution = global_solution(model, step)
        delta = solution.coefficients[0] @ model["task_vectors"]
        want = model[f"delta_{step}"]
        assert (delta - want).norm() <= 1e-8 * want.norm(), step
        torch.testing.assert_close(
            solution.losses[-1], model[f"loss_{step}"], rtol=1e-8, atol=1e-12
        )


def test_one_global_descent_passes_through_all_recorded_losses(model):
    losses = global_solution(model, recorded_steps(model)[-1]).losses
    for step in recorded_steps(model):
        want = model[f"loss_{step}"]
        torch.testing.assert_close(losses[step], want, rtol=1e-8, atol=1e-12)


def solved(rows: dict[str, Tensor], name: str) -> Tensor:
    solution = solve(row_grams(rows["task_vectors"]), row_settings(rows, name))
    return delta_of(rows["task_vectors"], solution.coefficients)


def test_flattened_cosine_with_row_norms(rows):
    want = rows["common_none"].double()
    assert want.abs().max() > 100 * CLOSE
    torch.testing.assert_close(solved(rows, "none"), want, rtol=0, atol=CLOSE)


def test_cosine_per_row(rows):
    """Both precisions of one literal descent bracket the record and the solver.

    A row that ends on a kink of |cos| may differ between float32 and float64; the solver
    is float64's, the record float32's, and elsewhere they agree.
    """
    in_float32, _ = literal_row_descent(rows, torch.float32)
    torch.testing.assert_close(in_float32, rows["common_row"], rtol=0, atol=CLOSE)
    in_float64, _ = literal_row_descent(rows, torch.float64)
    delta = solved(rows, "row")
    assert (delta - in_float64).norm() <= 1e-8 * in_float64.norm()
    parted = (in_float32.double() - in_float64).abs().amax(dim=1)
    error = (delta - rows["common_row"]).abs().amax(dim=1)
    assert (parted <= CLOSE).any() and rows["common_row"].abs().max() > 100 * CLOSE
    assert (error <= parted.clamp_min(CLOSE) + CLOSE).all()
    assert (error[parted <= CLOSE / 2] <= CLOSE).all()


@pytest.mark.parametrize("name, tolerance", [("row", 1e-5), ("none", 2e-7)])
def test_recorded_cosines_are_before_the_first_and_last_step(rows, name, tolerance):
    solution = solve(row_grams(rows["task_vectors"]), row_settings(rows, name))
    orthogonality = solution.losses[:, 1]
    want = rows[f"cos_{name}"]
    if name == "row":  # on a kink the precisions part: float32's own cosines
        _, literal = literal_row_descent(rows, torch.float32)
        torch.testing.assert_close(
            want,
            torch.tensor(literal, dtype=want.dtype)[[0, -1]],
            rtol=0,
            atol=tolerance,
        )
    torch.testing.assert_close(
        orthogonality[[0, -2]], want.double(), rtol=0, atol=tolerance
    )
    before, after = (orthogonality[[-2, -1]] - want[1]).abs()
    assert before <= after + tolerance


@pytest.mark.parametrize("name", ["row", "none"])
def test_both_solvers_agree_on_the_recorded_task_vectors(rows, name):
    settings = row_settings(rows, name)
    task_vectors = rows["task_vectors"].double()
    solution = solve(row_grams(task_vectors), settings)
    want, losses = solve_full_space(task_vectors.transpose(0, 1), settings)
    delta = delta_of(task_vectors, solution.coefficients)
    assert (delta - want).norm() <= 1e-8 * want.norm()
    torch.testing.assert_close(solution.losses, losses, rtol=1e-8, atol=1e-12)
