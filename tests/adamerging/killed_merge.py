"""Runs AdaMerging on a CLIP pool and kills it; started by test_adamerging_killed.

    killed_merge.py POOL FOLDER

Forks for every run, because a start costs seconds. Writes `FOLDER/unbroken.pt`,
`FOLDER/resumed.pt` and `FOLDER/found.json`, what each run found on its way.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from lightning import Fabric

from fusion_plugins import AdaMergingAlgorithm
from fusion_plugins.demo import demo_modelpool

STEPS, EVERY = 14, 2


def run(pool: str, checkpoints: Path, result: Path) -> None:
    algorithm = AdaMergingAlgorithm(
        steps=STEPS,
        lr=1e-2,
        max_samples=24,
        num_workers=0,
        guard_every=4,
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


def fork(*arguments) -> int:
    process = os.fork()
    if process:
        return process
    try:
        run(*arguments)
    finally:
        os._exit(0)


def newest(checkpoints: Path) -> int:
    names = [path.name for path in checkpoints.glob("*/step_*")]
    return max((int(name.removeprefix("step_")) for name in names), default=0)


def main(pool: str, folder: Path) -> None:
    torch.set_num_threads(1)
    os.waitpid(fork(pool, folder / "first", folder / "unbroken.pt"), 0)
    checkpoints, chance, found = folder / "second", random.Random(1), []
    for wanted in (4, 8):
        process = fork(pool, checkpoints, folder / "resumed.pt")
        while newest(checkpoints) < wanted:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.02))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        found.append([newest(checkpoints), (folder / "resumed.pt").exists()])
    os.waitpid(fork(pool, checkpoints, folder / "resumed.pt"), 0)
    found.append([newest(checkpoints), (folder / "resumed.pt").exists()])
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
