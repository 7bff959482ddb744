"""A streamed merge of a pool of folders, killed again and again; for test_streaming_killed."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from forked import KILLS, SIGNALS, finished, fork
from fusion_bench.method import TiesMergingAlgorithm
from lightning import Fabric

from fusion_plugins.streaming import StreamingAWDAlgorithm
from fusion_plugins.streaming.output import INDEX, OutputFolder

MANIFEST = (
    "merge.json"  # its statistics lie among a run's own files, which go at the end
)


def run(pool: Path, output: Path) -> None:
    """AWD and TIES, in many files: five walks and many moments to die in."""
    algorithm = StreamingAWDAlgorithm(
        base=TiesMergingAlgorithm(0.3, 20, [], "sum"),
        output=str(output),
        shard_gb=4e-6,
        alpha=1e-3,
        iterations=30,
    )
    algorithm.fabric = Fabric(accelerator="cpu", devices=1)
    algorithm.run({folder.name: str(folder) for folder in sorted(pool.iterdir())})


def hold(output: Path) -> None:
    """Write to a folder for as long as this process lives."""
    with OutputFolder(output, {}, {}):
        (output / "held").write_text("")
        time.sleep(600)


def content(folder: Path) -> dict[str, Any]:
    """The model in a folder and what its manifest says of it."""
    found = {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}
    manifest = json.loads(found[MANIFEST])
    manifest.pop("statistics", None)
    return found | {MANIFEST: manifest}


def kill_often(
    number: int, pool: Path, output: Path, want: dict, duration: float
) -> list[int]:
    """Kill runs at random moments until enough were killed; the last one may end."""
    chance, kills, runs, indices = random.Random(number), 0, 0, 0
    while kills < KILLS:
        process = fork(run, pool, output)
        time.sleep(chance.uniform(0, duration))
        os.kill(process, number)
        runs += 1
        if finished(process):
            assert content(output) == want
            shutil.rmtree(output)
        else:
            kills += 1
            if (output / INDEX).exists():  # killed after the merge was complete
                indices += 1
                assert content(output) == want
    assert finished(fork(run, pool, output))
    assert content(output) == want
    return [kills, runs, indices]


def lock(pool: Path, output: Path) -> str:
    """What a second process is told, and that a killed one leaves no lock."""
    process = fork(hold, output)
    while not (output / "held").exists():
        time.sleep(0.01)
    try:
        run(pool, output)
        message = "was not refused"
    except ValueError as error:
        message = str(error)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    (output / "held").unlink()
    run(pool, output)
    return message


def kill(pool: Path, folder: Path) -> dict:
    """By signal: kills, runs until the result was complete, how often an index was there."""
    assert finished(fork(run, pool, folder / "warm"))
    started = time.monotonic()
    assert finished(fork(run, pool, folder / "whole"))
    duration = time.monotonic() - started
    want, found = content(folder / "whole"), {}
    for number in SIGNALS:
        output = folder / number.name
        found[number.name] = kill_often(number, pool, output, want, duration)
    found["lock"] = lock(pool, folder / "locked")
    return found
