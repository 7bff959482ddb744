"""What every benchmark needs: fresh processes, memory, the machine's header, reports.

The measuring process starts workers and imports neither torch nor FusionBench: it stays
small, so no memory of its own can show up in a worker's figures.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table

_PACKAGES = ("fusion-plugins", "fusion-bench", "torch", "transformers", "safetensors")
_MIB = 2**20


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep FusionBench's and transformers' progress off the screen."""
    logging.disable(logging.WARNING)
    try:
        # A real file: FusionBench asks standard output for its file number.
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            with contextlib.redirect_stdout(nowhere):
                with contextlib.redirect_stderr(nowhere):
                    yield
    finally:
        logging.disable(logging.NOTSET)


def machine() -> dict:
    """What the figures were measured on: processor, memory, load, versions."""
    return {
        "cpu": _cpu_name(),
        "cores": (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count()
        ),
        "memory_gib": round(
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
        ),
        "threads": os.environ.get("OMP_NUM_THREADS", "all cores"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        # Above the number of cores, or far above 0 on an idle machine: figures are noisy.
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def limit_threads(threads: int | None) -> None:
    """Let every worker started from now on use this many threads; None leaves it."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)


def memory_mib() -> float | None:
    """Resident memory of this process now; None where the system does not tell."""
    return _status("VmRSS")


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far, mapped file pages included.

    On Linux `ru_maxrss` starts at the size of the process that started this one; VmHWM
    starts at zero.
    """
    import resource

    peak = _status("VmHWM")
    if peak is not None:
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MIB


def _status(field: str) -> float | None:
    file = Path("/proc/self/status")
    for line in file.read_text().splitlines() if file.is_file() else ():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return None


def in_fresh_process(script: str, *arguments) -> dict:
    """Run ``python script arguments`` and return the JSON object on its last line.

    Adds ``process_seconds``: from the start of the interpreter to its exit.

    Raises:
        RuntimeError: The worker failed; carries the end of what it wrote.
    """
    command = [sys.executable, script, *map(str, arguments)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(
            f"{command[1:]} failed with {done.returncode}:\n{done.stderr[-4000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1]) | {"process_seconds": seconds}


def measured_call(call: Callable[[], object]) -> dict:
    """Time one call and the memory around it; for use inside a worker."""
    before = memory_mib()
    start, cpu = time.perf_counter(), time.process_time()
    call()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "run_seconds": seconds,
        "run_cpu_seconds": cpu,  # of all threads; other jobs disturb it less
        "before_mib": before,
        "peak_mib": peak_memory_mib(),
    }


def timed(call: Callable[[], object], repeats: int) -> tuple[object, dict]:
    """Result of the last call, and the :func:`spread` of the seconds of each."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return result, spread(seconds)


def alternate(
    names: Sequence[str], measure: Callable[[str], dict], repeats: int
) -> dict[str, dict[str, dict]]:
    """Measure each name once per round, so that a busy spell of the machine hits all.

    Returns:
        Name -> figure -> :func:`spread` of its values.
    """
    rounds: dict[str, list[dict]] = {name: [] for name in names}
    for number in range(repeats):
        # Turn the order round each time: no one always runs first.
        for name in names if number % 2 == 0 else reversed(names):
            rounds[name].append(measure(name))
    return {
        name: {key: spread([r[key] for r in results]) for key in results[0]}
        for name, results in rounds.items()
    }


def spread(values: Sequence[float]) -> dict:
    """Least, median and all values of repeated measurements."""
    return {
        "min": min(values),
        "median": statistics.median(values),
        "all": list(values),
    }


def ratio(ours: dict, theirs: dict) -> dict:
    """Quotients of two :func:`spread` results: of the least and of the medians."""
    return {key: ours[key] / theirs[key] for key in ("min", "median")}


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column is text and whose others are figures."""
    printed = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        printed.add_column(column, justify="right" if number else "left")
    for row in rows:
        printed.add_row(*row)
    # A pipe or log file has no width of its own; do not cut the table there.
    console = Console()
    (console if console.is_terminal else Console(width=110)).print(printed)


def print_machine(header: dict) -> None:
    versions = ", ".join(f"{name} {v}" for name, v in header["versions"].items())
    print(
        f"{header['cpu']}, {header['cores']} cores, {header['memory_gib']} GiB,"
        f" threads: {header['threads']},"
    )
    print(f"Python {header['python']}, {versions}; load {header['load_average'][0]}")


def save(report: dict, path: Path | None) -> None:
    """Write the report as JSON, if a path was given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")
        print(f"Saved {path}")
