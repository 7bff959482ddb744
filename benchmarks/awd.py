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
from awd_solver import (
    full_space_worker,
    gram_space_worker,
    measure_solver,
    print_solver,
)

METHODS = ("task_arithmetic", "awd")
_TIMES = ("run_seconds", "run_cpu_seconds", "process_seconds")


def main() -> None:
    options = _options()
    if options.worker:
        print(json.dumps(WORKERS[options.worker](options)))
        return
    common.limit_threads(options.threads)
    report = {"machine": common.machine(), "quick": options.quick}
    common.print_machine(report["machine"])
    report["solver"] = measure_solver(__file__, options)
    print_solver(report["solver"])
    folder = (
        nullcontext(options.data) if options.data else tempfile.TemporaryDirectory()
    )
    report["method"] = {}
    with folder as data:
        prepare_checkpoints(options, Path(data))
        for tasks in options.tasks:
            report["method"][tasks] = measure_methods(options, Path(data), tasks)
            common.save(report, options.out)  # an interrupted run keeps what it has
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


# (b), (c) the whole method


def prepare_checkpoints(options, data: Path) -> None:
    print("\nPreparing the checkpoints ...", flush=True)
    most = ["--data", data, "--tasks", max(options.tasks)]
    common.in_fresh_process(__file__, "--worker", "checkpoints", *most)


def measure_methods(options, data: Path, tasks: int) -> dict:
    print(f"Merging {tasks} experts ...", flush=True)
    arguments = ["--worker", "merge", "--data", data, "--tasks", tasks, "--method"]
    # Once untimed: everyone then finds the files in the page cache.
    common.in_fresh_process(__file__, *arguments, METHODS[0])
    figures = common.alternate(
        METHODS,
        lambda method: common.in_fresh_process(__file__, *arguments, method),
        options.repeats,
    )
    theirs, ours = (figures[method] for method in METHODS)
    quotients = {key: common.ratio(ours[key], theirs[key]) for key in ours}
    return figures | {"awd / task_arithmetic": quotients}


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
