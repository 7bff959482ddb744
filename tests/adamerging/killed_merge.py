"""AdaMerging on a CLIP pool, killed twice; for test_adamerging_killed."""

import os
import random
import signal
import time
from pathlib import Path

import torch
from forked import finished, fork
from lightning import Fabric

from fusion_plugins import AdaMergingAlgorithm
from fusion_plugins.adaptation import Checkpoints
from fusion_plugins.demo import demo_modelpool

STEPS, EVERY = 14, 2


def run(pool: str, checkpoints: Path, result: Path) -> None:
    algorithm = AdaMergingAlgorithm(
        steps=STEPS,
        lr=1e-2,
        max_samples=24,
        num_workers=0,
        guard_every=4,
        preset="official",
        guard_samples=16,
        checkpoint_dir=str(checkpoints),
        checkpoint_every=EVERY,
        trim=0.5,
        disentangle={"alpha": 0.001, "granularity": "tensor"},
    )
    algorithm.fabric = Fabric(accelerator="cpu", devices=1)
    merged = algorithm.run(demo_modelpool(root=pool))
    torch.save(
        {
            "raw": algorithm.result.raw,
            "model": merged.state_dict(),
            "losses": [entry["loss"] for entry in algorithm.history],
            "guard": algorithm.guard_history,
        },
        result,
    )


def run_until_killed(step: int, *arguments) -> None:
    """A run that waits for its end at a checkpoint of `step` or later."""
    save = Checkpoints.save

    def saving(self, engine):
        save(self, engine)
        if engine.step >= step:
            time.sleep(60)

    Checkpoints.save = saving
    run(*arguments)


def newest(checkpoints: Path) -> int:
    names = [path.name for path in checkpoints.glob("*/step_*")]
    return max((int(name.removeprefix("step_")) for name in names), default=0)


def kill(pool: str, folder: Path) -> list:
    """What each run found; they write `unbroken.pt` and `resumed.pt`."""
    assert finished(fork(run, pool, folder / "first", folder / "unbroken.pt"))
    checkpoints, chance, found = folder / "second", random.Random(1), []
    for wanted in (4, 8):
        arguments = (pool, checkpoints, folder / "resumed.pt")
        process = fork(run_until_killed, wanted + EVERY, *arguments)
        while newest(checkpoints) < wanted:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.02))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        found.append([newest(checkpoints), (folder / "resumed.pt").exists()])
    assert finished(fork(run, pool, checkpoints, folder / "resumed.pt"))
    found.append([newest(checkpoints), (folder / "resumed.pt").exists()])
    return found
