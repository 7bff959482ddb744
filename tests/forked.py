"""Processes that start at once: forked from a server that has imported everything.

Tests that kill runs, or that need several processes, call :func:`call`; what it runs forks
again for every run with :func:`fork`. :func:`run_script` is `subprocess.run` for a script.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
KILLS = 10

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [
        "fusion_bench.taskpool.clip_vision.taskpool",
        "fusion_bench.method.ties_merging.ties_merging",
        "fusion_plugins.demo.build",
        "fusion_plugins.compare.program",
        "fusion_plugins.tinting.algorithm",
        "fusion_plugins.adamerging.algorithm",
        "fusion_plugins.streaming.algorithm",
        # imported on use, which each fork would do again
        "matplotlib.font_manager",
        "matplotlib.backends.backend_agg",
        "matplotlib.backends.backend_pdf",
        "matplotlib.backends.backend_svg",
    ]
)


def call(work: Callable[..., Any], *arguments: Any, timeout: float = 600) -> Any:
    """What `work(*arguments)` returns in a process of its own."""
    with ProcessPoolExecutor(1, _server, initializer=_prepare) as pool:
        started = pool.submit(work, *arguments)
        try:
            return started.result(timeout)
        except TimeoutError:
            for process in pool._processes.values():
                process.kill()
            raise


def _prepare() -> None:
    import torch
    from tqdm import tqdm

    torch.set_num_threads(1)
    gc.freeze()  # collecting what was imported would take most of the time
    # By default bars share a lock with all forks: one killed inside it stops the others.
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0  # no thread of its own


def fork(work: Callable[..., Any], *arguments: Any) -> int:
    """Start `work(*arguments)`, silently; the process's id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        work(*arguments)
        status = 0
    finally:
        os._exit(status)


def run_script(
    command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess:
    """A Python script, or `-m` and a module, run with its words to its end."""
    return call(_run_script, list(map(str, command)), folder, dict(environment))


def _run_script(
    command: list[str], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = os.fork()
        if not process:
            os.chdir(folder)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            become(command, environment)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        texts = [stream.seek(0) or stream.read() for stream in (out, err)]
        return subprocess.CompletedProcess(command, status, *texts)


def become(command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Be from now on the process that a script is; its output is a terminal's."""
    status = 1
    os.environ.clear()
    os.environ.update(environment)
    sys.stdout, sys.stderr = (open(number, "w", 1) for number in (1, 2))
    module = command[0] == "-m"
    sys.argv = list(command[module:])
    try:
        if module:
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(command[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:  # noqa: BLE001 told as Python tells it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def finished(process: int) -> bool:
    """Whether it ended well; waits for it."""
    return os.waitpid(process, 0)[1] == 0


def kill_often(
    run: Callable[[Path], Any],
    folder: Path,
    differences: Callable[[Path, Path], list[str]],
) -> list[dict[str, Any]]:
    """Kill `run(own)` ten times by each signal, spread over its length; run it again.

    Returns:
        For each kill its signal, whether it hit before the end, whether the next run
        ended well, and what `differences(own, unbroken)` finds then.
    """
    run(folder / "first")  # so that nothing is slow later
    lengths, chance, report = [], random.Random(0), []
    for name in ("unbroken", "second", "third"):
        started = time.perf_counter()
        finished(fork(run, folder / name))
        lengths.append(time.perf_counter() - started)
    length = min(lengths)
    for number in SIGNALS:
        for kill in range(KILLS):
            own = folder / f"{number.name}-{kill}"
            process = fork(run, own)
            moment = (kill + chance.random()) / KILLS * length
            time.sleep(moment)
            os.kill(process, number)
            found = {"signal": number.name, "hit": not finished(process)}
            if not found["hit"]:
                length = min(length, moment)  # the machine was busy before
            found["ended"] = finished(fork(run, own))
            found["differs"] = differences(own, folder / "unbroken")
            report.append(found)
            shutil.rmtree(own)
    return report


def assert_nothing_lost(report: list[dict[str, Any]]) -> None:
    """Every signal came ten times, mostly in time, and no run shows a trace of it."""
    signals = [entry["signal"] for entry in report]
    assert {s: signals.count(s) for s in signals} == {s.name: KILLS for s in SIGNALS}
    assert sum(entry["hit"] for entry in report) >= len(report) / 2
    lost = [e for e in report if e["differs"] or not e["ended"]]
    assert not lost, lost
