"""AWD's cost: its solver against the full-space one, the method against Task Arithmetic.

    python benchmarks/awd.py [--quick] [--out awd.json] [--data FOLDER]

Everything is ViT-B/32-sized with random weights: no download. The checkpoints (350 MB
each, 17 of them) go to a temporary folder, or to FOLDER, where they are used again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import nullcontext
from pathlib import Path

import common

ITERATIONS = 300  # AWD's default, and the paper's
METHODS = ("task_arithmetic", "awd")
# Autograd holds about this many stacks at once, the task vectors themselves included.
_FULL_SPACE_STACKS = 8
_TIMES = ("run_seconds", "run_cpu_seconds", "process_seconds")


def main() -> None:
    options = _options()
    if options.worker:
        print(json.dumps(WORKERS[options.worker](options)))
        return
    common.limit_threads(options.threads)
    report = {"machine": common.machine(), "quick": options.quick}
    common.print_machine(report["machine"])
    report["solver"] = measure_solver(options)
    print_solver(report["solver"])
    folder = (
        nullcontext(options.data) if options.data else tempfile.TemporaryDirectory()
    )
    with folder as data:
        report["method"] = measure_methods(options, Path(data))
    print_methods(report["method"])
    report["machine"]["load_average_at_end"] = common.machine()["load_average"]
    common.save(report, options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small sketch of it all")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--data", type=Path, help="folder for the checkpoints; kept")
    parser.add_argument("--repeats", type=int, help="rounds (default 5, quick 1)")
    parser.add_argument("--tasks", type=int, nargs="+", help="default 2 4 8 16")
    parser.add_argument(
        "--memory",
        type=float,
        help="GB for the full-space solver (default 12, quick 2)",
    )
    parser.add_argument(
        "--threads", type=int, help="of torch; 1 is steadier where other jobs run"
    )
    for hidden in ("--worker", "--method"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.repeats = options.repeats or (1 if options.quick else 5)
    options.tasks = options.tasks or ([2, 4] if options.quick else [2, 4, 8, 16])
    options.memory = options.memory or (2 if options.quick else 12)
    return options


# (a) the two solvers


def measure_solver(options) -> dict:
    print("\nMeasuring the solvers ...", flush=True)
    arguments = ["--repeats", options.repeats, "--memory", options.memory]
    ours = common.in_fresh_process(__file__, "--worker", "gram_space", *arguments)
    full = common.in_fresh_process(__file__, "--worker", "full_space", *arguments)
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
        pieces = zip(shapes.items(), vector.split(sizes))
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

    from fusion_plugins.awd.functional import Descent, solve, solve_full_space

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


# (b), (c) the whole method


def measure_methods(options, data: Path) -> dict:
    print("\nPreparing the checkpoints ...", flush=True)
    most = ["--data", data, "--tasks", max(options.tasks)]
    common.in_fresh_process(__file__, "--worker", "checkpoints", *most)
    results = {}
    for tasks in options.tasks:
        print(f"Merging {tasks} experts ...", flush=True)
        arguments = ["--worker", "merge", "--data", data, "--tasks", tasks]
        # Once untimed: everyone then finds the files in the page cache.
        common.in_fresh_process(__file__, *arguments, "--method", METHODS[0])
        figures = common.alternate(
            METHODS,
            lambda method, arguments=arguments: common.in_fresh_process(
                __file__, *arguments, "--method", method
            ),
            options.repeats,
        )
        theirs, ours = (figures[method] for method in METHODS)
        quotients = {key: common.ratio(ours[key], theirs[key]) for key in ours}
        results[tasks] = figures | {"awd / task_arithmetic": quotients}
    return results


def checkpoints_worker(options) -> dict:
    import stand_ins

    return stand_ins.save_vit_b32_pool(options.data, max(options.tasks))


def merge_worker(options) -> dict:
    """Merge a pool of folders as a FusionBench program would."""
    import stand_ins
    from fusion_bench.modelpool import CLIPVisionModelPool

    paths = stand_ins.vit_b32_pool(options.data, options.tasks[0])
    pool = CLIPVisionModelPool(paths)
    if options.method == "awd":
        from fusion_plugins import AWDAlgorithm

        algorithm = AWDAlgorithm()
    else:
        from fusion_bench.method import TaskArithmeticAlgorithm

        algorithm = TaskArithmeticAlgorithm(scaling_factor=0.3)
    return common.measured_call(lambda: algorithm.run(pool))


def print_methods(results: dict) -> None:
    rows = []
    for tasks, figures in results.items():
        for method in METHODS:
            values = figures[method]
            rows.append(
                [f"{method}, {tasks} experts"]
                + [_seconds(values[key]) for key in _TIMES]
                + [f"{values[k]['median']:.0f}" for k in ("before_mib", "peak_mib")]
            )
        quotients = figures["awd / task_arithmetic"]
        rows.append(
            ["  ratio"]
            + [_seconds(quotients[key]) for key in _TIMES]
            + ["", f"{quotients['peak_mib']['median']:.2f}"]
        )
    common.table(
        "Whole method on saved ViT-B/32 checkpoints, fresh processes: least (median)",
        ["", "run() s", "run() CPU s", "process s", "MiB before", "peak MiB"],
        rows,
    )


def _seconds(values: dict) -> str:
    return f"{values['min']:.2f} ({values['median']:.2f})"


WORKERS = {
    "gram_space": gram_space_worker,
    "full_space": full_space_worker,
    "checkpoints": checkpoints_worker,
    "merge": merge_worker,
}


if __name__ == "__main__":
    main()
