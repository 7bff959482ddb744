"""Timing steps of adaptation: jobs, workers, rounds, and rows of the tables."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import common

WARM_UP = 2


def parser(doc: str, batch_help: str, out: str) -> argparse.ArgumentParser:
    """Options that both benchmarks of adaptation have."""
    parsed = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parsed.add_argument
    sizes = ("small", "small-24px", "vit-b32", "vit-l14")
    add("--sizes", nargs="+", choices=sizes, default=["small", "vit-b32"])
    add("--tasks", type=int, nargs="+", default=[8])
    add("--batch", type=int, nargs="+", help=batch_help)
    add("--dtype", nargs="+", choices=PRECISIONS, default=["float32"])
    add(
        "--task-vector-dtype",
        default="float32",
        help="of ours; or bfloat16, float16, int8, int4",
    )
    add("--steps", type=int, default=10, help=f"timed ones, after {WARM_UP} others")
    add("--repeats", type=int, default=3, help="rounds of fresh processes")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--memory-cap", type=float, help="GB of the GPU that a process may use")
    add("--threads", type=int, help="of torch; 1 is steadier where other jobs run")
    add("--out", type=Path, default=Path(out), help="JSON file for the figures")
    add("--worker", help=argparse.SUPPRESS)
    return parsed


PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}


def jobs(options, device: str, default_batch) -> list[dict]:
    """One job per combination of size, tasks, batch and precision."""
    found = []
    for size in options.sizes:
        batches = options.batch or [default_batch(size, device)]
        for tasks, batch, dtype in itertools.product(
            options.tasks, batches, options.dtype
        ):
            job = {"size": size, "tasks": tasks, "batch": batch, "device": device}
            job |= {"dtype": dtype, "precision": PRECISIONS[dtype], "batches": 2}
            job |= {"task_vector_dtype": options.task_vector_dtype}
            job |= {"memory_cap": options.memory_cap, "steps": options.steps}
            found.append(job)
    return found


def title(job: dict) -> str:
    cap = f", at most {job['memory_cap']:g} GB" if job["memory_cap"] else ""
    return (
        f"{job['size']}, {job['tasks']} tasks, batch {job['batch']}, {job['dtype']},"
        f" task vectors {job['task_vector_dtype']}, {job['device']}{cap}"
    )


def start(script: str, worker: str, job: dict) -> dict:
    """One worker in a fresh process."""
    return common.in_fresh_process(
        script, "--worker", json.dumps(job | {"worker": worker})
    )


def probe(script: str, device: str) -> dict:
    """The device to use and what it is called, without importing torch here."""
    return common.in_fresh_process(
        script, "--worker", json.dumps({"worker": "probe", "device": device})
    )


def probe_worker(job: dict) -> dict:
    import torch

    device = job["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "the processor"
    return {"device": device, "name": name}


def run(
    script: str,
    options: argparse.Namespace,
    workers: Mapping[str, Callable[[dict], dict]],
    default_batch: Callable[[str, str], int],
    measure: Callable[[dict, int], dict],
    print_result: Callable[[dict], None],
) -> None:
    """Measure every job and save its figures; in a worker's process, be that worker.

    Args:
        script: The benchmark's own file, which workers are started from.
        options: What :func:`parser` gave.
        workers: Name -> function from a job to its figures.
        default_batch: (size, device) -> samples of a batch where no option says so.
        measure: (job, repeats) -> result.
        print_result: Shows one result.
    """
    if options.worker:
        print(json.dumps(_worker_figures(workers, json.loads(options.worker))))
        return
    common.limit_threads(options.threads)
    report = {"machine": common.machine(), "results": []}
    common.print_machine(report["machine"])
    report["device"] = probe(script, options.device)
    for job in jobs(options, report["device"]["device"], default_batch):
        print(f"\nMeasuring {title(job)} ...", flush=True)
        result = measure(job, options.repeats)
        report["results"].append(result)
        print_result(result)
        report["machine"]["load_average_at_end"] = common.machine()["load_average"]
        common.save(report, options.out)


def _worker_figures(workers: Mapping[str, Callable], job: dict) -> dict:
    if job["worker"] == "probe":
        return probe_worker(job)
    import adaptation_stand_ins

    return adaptation_stand_ins.run_worker(workers, job)


def rounds(script: str, names, job: dict, repeats: int) -> dict:
    """Every worker once per round, the order turned each time."""
    return common.alternate(names, lambda name: start(script, name, job), repeats)


def step_row(label: str, figures: dict) -> list[str]:
    if "out_of_memory" in figures:
        return [label, "out of memory", "", "", ""]
    return [
        label,
        f"{figures['seconds']['median']:.4f}",
        f"{figures['least_seconds']['min']:.4f}",
        f"{figures['cpu_seconds']['median']:.4f}",
        f"{figures['peak_mib']['median']:.0f}",
    ]


STEP_COLUMNS = ["", "s per step", "least", "CPU s", "peak MiB"]


def step_ratio(figures: dict, one: str, other: str) -> dict | None:
    """Quotients of the medians, the least values, CPU times and peak memory."""
    if any("out_of_memory" in figures[name] for name in (one, other)):
        return None
    kinds = {"seconds": "median", "least_seconds": "min"}
    kinds |= {"cpu_seconds": "median", "peak_mib": "median"}
    return {
        key: figures[one][key][kind] / figures[other][key][kind]
        for key, kind in kinds.items()
    }


def ratio_row(label: str, ratio: dict | None) -> list[str]:
    values = [f"{value:.2f}x" for value in ratio.values()] if ratio else ["-"] * 4
    return [f"  {label}", *values]


def parts(figures: dict) -> str:
    """The engine's time split, in seconds per step."""
    split = {n.removeprefix("part/"): v for n, v in figures.items() if "part/" in n}
    return ", ".join(f"{n} {v['median']:.4f}" for n, v in split.items())
