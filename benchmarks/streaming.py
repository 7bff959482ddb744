"""Merging language models from files to files: time against the disk, memory, mergekit.

    python benchmarks/streaming.py --root FOLDER [--mergekit PATH] [--tasks 2 4 8]

FOLDER gets a base and experts with LLaMA's layout and random weights in bfloat16 (1 GB
each with the default size); they are kept and used again. The page cache is emptied
before every process and once more before its merge, so that the disk is part of both
times. A virtual machine may hand freed pages back to its host a second or two later, and
getting them again can cost more than the disk. So that all are measured alike, all free
memory is used once in between (not counted), or with --memory returned nothing is done
until it is gone. Compared with

* reading all input bytes once and twice, and writing the result, with nothing done,
* mergekit's task_arithmetic on the same folders, if its program is given. Keep mergekit
  in a virtual environment of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import common

METHODS = ("read_once", "read_twice", "task_arithmetic", "awd", "ties", "mergekit")
_CHUNK = 8 * 2**20


def main() -> None:
    options = _options()
    if options.worker:
        print(json.dumps(WORKERS[options.worker](options)))
        return
    common.limit_threads(options.threads)
    report = {"machine": common.machine(), "parameters": options.parameters}
    common.print_machine(report["machine"])
    count = ["--worker", "experts", "--root", options.root]
    count += ["--parameters", options.parameters, "--tasks", max(options.tasks)]
    print("Preparing the experts ...", flush=True)
    report["model"] = common.in_fresh_process(__file__, *count)
    report["cold"] = empty_cache(options.root)
    print(f"Before each measurement: {report['cold']}")
    report["tasks"] = {}
    for tasks in options.tasks:
        report["tasks"][tasks] = measure(options, tasks)
        common.save(report, options.out)  # an interrupted run keeps what it has
    print_results(report)
    report["machine"]["load_average_at_end"] = common.machine()["load_average"]
    common.save(report, options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="for models; kept")
    parser.add_argument(
        "--mergekit", type=Path, help="mergekit-yaml, or its bin folder"
    )
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--parameters", type=float, default=0.5, help="billions")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--memory", choices=("used", "returned"), default="used")
    parser.add_argument("--threads", type=int, help="of torch (default: all cores)")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    for hidden in ("--worker", "--method", "--output"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mergekit is not None and options.mergekit.is_dir():
        options.mergekit = options.mergekit / "mergekit-yaml"
    if options.mergekit is None and "mergekit" in options.methods:
        options.methods.remove("mergekit")
    return options


def folders(root: Path, tasks: int) -> dict[str, str]:
    names = ["_pretrained_", *(f"expert{number}" for number in range(tasks))]
    return {name: str(root / name) for name in names}


def weight_files(paths: list[str]) -> list[Path]:
    return [file for path in paths for file in sorted(Path(path).glob("*.safetensors"))]


def empty_cache(root: Path) -> str:
    """Forget what the system keeps of files in memory; says how."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return "the page cache is dropped (drop_caches)"
    except OSError:
        for file in root.glob("*/*.safetensors"):
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return "the inputs are dropped from the page cache (posix_fadvise)"


def measure(options, tasks: int) -> dict:
    print(f"{tasks} experts ...", flush=True)
    figures = common.alternate(
        options.methods,
        lambda method: run_once(options, method, tasks),
        options.repeats,
    )
    bound = figures.get("read_twice")
    if bound is not None:
        for method in set(figures) & {"task_arithmetic", "awd", "ties", "mergekit"}:
            quotient = common.ratio(figures[method]["seconds"], bound["seconds"])
            figures[method]["against_read_twice"] = quotient
    return figures


def settle(memory: str) -> None:
    """Bring free memory into the same state before each measurement."""
    if memory == "returned":
        time.sleep(_RETURN_SECONDS)
    else:  # in a process of its own, not to count as this one's memory
        subprocess.run([sys.executable, "-c", _TOUCH_PAGES], check=True)


_RETURN_SECONDS = 8


_TOUCH_PAGES = """
import mmap, os
size = int(0.92 * os.sysconf("SC_AVPHYS_PAGES")) * mmap.PAGESIZE
pages = mmap.mmap(-1, size)
for start in range(0, size, mmap.PAGESIZE):
    pages[start] = 1
"""


def run_once(options, method: str, tasks: int) -> dict:
    with tempfile.TemporaryDirectory(dir=options.root) as output:
        empty_cache(options.root)
        if method == "mergekit":
            settle(options.memory)
            return run_mergekit(options, tasks, Path(output))
        arguments = ["--worker", "run", "--root", options.root, "--tasks", tasks]
        arguments += ["--method", method, "--output", output]
        arguments += ["--memory", options.memory]
        figures = common.in_fresh_process(__file__, *arguments)
        figures["process_seconds"] -= figures.pop("preparing_seconds")
        return figures


def run_mergekit(options, tasks: int, output: Path) -> dict:
    """The whole program, for no part of it can be timed alone."""
    paths = folders(options.root, tasks)
    base = paths.pop("_pretrained_")
    models = "\n".join(
        f"  - model: {path}\n    parameters: {{weight: 0.3}}" for path in paths.values()
    )
    config = output / "merge.yml"
    config.write_text(
        f"merge_method: task_arithmetic\nbase_model: {base}\nmodels:\n{models}\n"
        "parameters: {normalize: false}\ndtype: float32\nout_dtype: bfloat16\n"
    )
    command = [str(options.mergekit), str(config), str(output / "merged")]
    command += ["--lazy-unpickle", "--no-copy-tokenizer", "--quiet"]
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    peak = watch_memory(process)
    error = process.stderr.read()
    if process.returncode:
        raise RuntimeError(f"{command} failed:\n{error[-4000:]}")
    os.sync()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "process_seconds": seconds, **peak}


def watch_memory(process: subprocess.Popen) -> dict:
    """Wait for another program; its peak memory as the system counts it."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {"peak_mib": usage.ru_maxrss / 1024, "before_mib": 0.0}


# Workers: each in a process of its own


def experts_worker(options) -> dict:
    """Make what is missing of the base and the experts, one tensor at a time."""
    import streaming_models

    models = folders(options.root, options.tasks[0])
    return streaming_models.save_llama_pool(models, options.parameters)


def run_worker(options) -> dict:
    paths = folders(options.root, options.tasks[0])
    if options.method.startswith("read"):
        times = 1 if "once" in options.method else 2
        call = partial(read_and_write, options, paths, times)
    else:
        output = str(Path(options.output) / "merged")
        call = partial(make_algorithm(options.method, output).run, paths)
    start = time.perf_counter()
    empty_cache(options.root)
    settle(options.memory)
    preparing = time.perf_counter() - start
    figures = common.measured_call(call)
    return {
        "seconds": figures["run_seconds"],
        "cpu_seconds": figures["run_cpu_seconds"],
        "before_mib": figures["before_mib"],
        "peak_mib": figures["peak_mib"],
        "preparing_seconds": preparing,
    }


def make_algorithm(method: str, output: str):
    from fusion_bench.method import TaskArithmeticAlgorithm, TiesMergingAlgorithm

    from fusion_plugins.streaming import StreamingAWDAlgorithm

    base = TaskArithmeticAlgorithm(scaling_factor=0.3)
    if method == "ties":
        base = TiesMergingAlgorithm(0.3, 20, [], "sum")
    iterations = 300 if method == "awd" else 0
    return StreamingAWDAlgorithm(base=base, iterations=iterations, output=output)


def read_and_write(options, paths: dict[str, str], times: int) -> None:
    """All input bytes in plain order, then one model's bytes to the disk."""
    buffer = bytearray(_CHUNK)
    for _ in range(times):
        for file in weight_files(list(paths.values())):
            with file.open("rb", buffering=0) as stream:
                while stream.readinto(buffer):
                    pass
    size = sum(f.stat().st_size for f in weight_files([paths["_pretrained_"]]))
    with (Path(options.output) / "written").open("wb", buffering=0) as stream:
        for done in range(0, size, _CHUNK):
            stream.write(memoryview(buffer)[: min(_CHUNK, size - done)])
        os.fsync(stream.fileno())


WORKERS = {"experts": experts_worker, "run": run_worker}


def print_results(report: dict) -> None:
    rows = []
    for tasks, figures in report["tasks"].items():
        for method, values in figures.items():
            against = values.get("against_read_twice")
            rows.append(
                [f"{method}, {tasks} experts"]
                + [
                    f"{values[k]['min']:.1f} ({values[k]['median']:.1f})"
                    for k in _TIMES
                ]
                + [f"{against['median']:.2f}" if against else ""]
                + [f"{values['peak_mib']['median']:.0f}"]
            )
    common.table(
        f"{report['model']['parameters'] / 1e9:.2f}B parameters in bfloat16, cold files:"
        " least (median)",
        ["", "seconds", "process s", "x read twice", "peak MiB"],
        rows,
    )


_TIMES = ("seconds", "process_seconds")


if __name__ == "__main__":
    main()
