"""AWD's solver in Gram space against the full-space one; run by benchmarks/awd.py."""

from __future__ import annotations

import common

ITERATIONS = 300  # AWD's default, and the paper's
# Autograd holds about this many stacks at once, the task vectors themselves included.
_FULL_SPACE_STACKS = 8


def measure_solver(script: str, options) -> dict:
    print("\nMeasuring the solvers ...", flush=True)
    arguments = ["--repeats", options.repeats, "--memory", options.memory]
    ours = common.in_fresh_process(script, "--worker", "gram_space", *arguments)
    full = common.in_fresh_process(script, "--worker", "full_space", *arguments)
    # Every step of the full-space solver walks over all entries: it scales with them.
    scale = ours["entries"] / full["entries"]
    result = {"gram_space": ours, "full_space": full, "scale": scale}
    for key in ("min", "median"):
        step, full_step = ours["step"][key], scale * full["step"][key]
        total = ours["gram_matrix"][key] + ITERATIONS * step
        result[key] = {
            "gram_space_total": total,
            "full_space_step": full_step,
            "full_space_total_extrapolated": ITERATIONS * full_step,
            "ratio_per_step": full_step / step,
            "ratio_of_totals": ITERATIONS * full_step / total,
        }
    return result


def gram_space_worker(options) -> dict:
    """Time the Gram matrix once and the descent on it, at full size."""
    import stand_ins
    import torch

    from fusion_plugins.awd.functional import Descent, solve
    from fusion_plugins.task_vectors import (
        StateDictCheckpoint,
        TaskVectors,
        gram_matrices,
    )

    shapes = stand_ins.vit_b32_shapes()
    sizes = [shape.numel() for shape in shapes.values()]
    stack = stand_ins.task_vector_stack(8, sum(sizes))

    def checkpoint(vector, label):
        pieces = zip(shapes.items(), vector.split(sizes), strict=True)
        return StateDictCheckpoint({n: v.view(s) for (n, s), v in pieces}, label)

    task_vectors = TaskVectors(
        checkpoint(torch.zeros(sum(sizes)), "the base"),
        {f"task_{t}": checkpoint(row, f"expert {t}") for t, row in enumerate(stack)},
    )
    gram, gram_seconds = common.timed(
        lambda: gram_matrices(task_vectors).values, options.repeats
    )
    _, seconds = common.timed(lambda: solve(gram, Descent()), options.repeats)
    norms = gram[0].diagonal().sqrt()
    cosines = (gram[0] / norms / norms[:, None])[~torch.eye(8, dtype=torch.bool)]
    return {
        "tasks": len(stack),
        "entries": stack.shape[1],
        "norms": [norms.min().item(), norms.max().item()],
        "cosines": [cosines.min().item(), cosines.max().item()],
        "gram_matrix": gram_seconds,
        "step": common.spread([value / ITERATIONS for value in seconds["all"]]),
        "peak_mib": common.peak_memory_mib(),
    }


def full_space_worker(options) -> dict:
    """Time full-space steps, and check that both solvers reach the same delta."""
    import stand_ins

    from fusion_plugins.awd.full_space import solve_full_space
    from fusion_plugins.awd.functional import Descent, solve

    most = int(options.memory * 1e9 / (_FULL_SPACE_STACKS * 8 * 4))
    whole = sum(shape.numel() for shape in stand_ins.vit_b32_shapes().values())
    stack = stand_ins.task_vector_stack(8, min(most, whole))
    repeats = min(options.repeats, 3)
    _, one = common.timed(
        lambda: solve_full_space(stack[None], Descent(iterations=1)), repeats
    )
    (delta, _), three = common.timed(
        lambda: solve_full_space(stack[None], Descent(iterations=3)), repeats
    )
    parts = (part.double() for part in stack.split(2**20, dim=1))
    gram = sum(part @ part.t() for part in parts)
    ours = solve(gram[None], Descent(iterations=3)).coefficients[0].float() @ stack
    return {
        "tasks": len(stack),
        "entries": stack.shape[1],
        # The difference leaves out what is done once per call, such as the last loss.
        "step": {key: (three[key] - one[key]) / 2 for key in ("min", "median")},
        "seconds_of_1_step": one,
        "seconds_of_3_steps": three,
        "relative_difference": ((delta[0] - ours).norm() / ours.norm()).item(),
        "peak_mib": common.peak_memory_mib(),
    }


def print_solver(result: dict) -> None:
    ours, full = result["gram_space"], result["full_space"]
    rows = []
    for key in ("min", "median"):
        values = result[key]
        rows.append(
            [
                key,
                f"{ours['gram_matrix'][key]:.2f} s",
                f"{ours['step'][key] * 1e6:.0f} us",
                f"{values['full_space_step']:.2f} s",
                f"{values['gram_space_total']:.2f} s",
                f"{values['full_space_total_extrapolated']:.0f} s *",
                f"{values['ratio_per_step']:,.0f}x",
                f"{values['ratio_of_totals']:,.0f}x *",
            ]
        )
    common.table(
        f"Solver: {ours['tasks']} task vectors of {ours['entries'] / 1e6:.1f}M entries",
        ["", "Gram matrix", "Gram step", "full step"]
        + [f"Gram total ({ITERATIONS})", "full total", "per step", "totals"],
        rows,
    )
    print(
        f"* extrapolated from measured steps. Full-space steps were measured on"
        f" {full['entries'] / 1e6:.1f}M entries (peak {full['peak_mib'] / 1024:.1f} GiB)"
        f" and scaled by {result['scale']:.2f}.\nDelta after 3 steps differs by"
        f" {full['relative_difference']:.1e} (full space in float32)."
    )
