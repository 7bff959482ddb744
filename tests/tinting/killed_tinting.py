"""Runs Model Tinting on a toy pool and kills it; started by test_tinting_killed.

    killed_tinting.py FOLDER

Forks for every run, because a start costs seconds. A run writes `log/` and `model/`, and
its numbers as `ended.pt`. Writes `FOLDER/report.json`: per kill the signal, whether it
hit before the end, and what differs from the unbroken run.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from lightning import Fabric
from safetensors.torch import load_file
from toy_tinting import ToyAdapter, ToyNet, make, toy_pool

from fusion_plugins import TintedModel
from fusion_plugins.learned import results
from fusion_plugins.pools import as_modelpool

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
KILLS = 10
# The order of a safetensors file's header is not fixed, so its numbers are compared.
FILES = {
    "coefficients.safetensors": lambda p: load_file(p)["raw"].tolist(),
    "coefficients.json": Path.read_bytes,
}


def plotless() -> None:
    """Pictures take most of the time, and hold nothing that is not in the other files."""
    for name in ("plot_coefficients", "plot_history"):
        setattr(results, name, lambda *_: None)


def run(folder: Path) -> None:
    method = make(
        rounds=4,
        checkpoint_every=2,
        checkpoint_dir=str(folder / "kept"),
        guard_every=5,
    )
    method.fabric = Fabric(accelerator="cpu", devices=1)
    method._program = SimpleNamespace(path={"log_dir": str(folder / "log")})
    pool = as_modelpool(toy_pool())
    model = method.run(pool, ToyAdapter(pool))
    model.save_pretrained(folder / "model")
    losses = [entry["loss"] for entry in method.history]
    guard = method.guard_history
    numbers = {"model": model.state_dict(), "losses": losses, "guard": guard}
    torch.save(numbers, folder / "ended.pt")


def fork(folder: Path) -> int:
    process = os.fork()
    if process:
        return process
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    status = 1
    try:
        run(folder)
        status = 0
    finally:
        os._exit(status)


def differences(folder: Path, unbroken: Path) -> list[str]:
    """What is not bit for bit as in the unbroken run."""
    one, other = (torch.load(f / "ended.pt") for f in (folder, unbroken))
    found = [n for n in ("losses", "guard") if one[n] != other[n]]
    found += [
        n for n, v in other["model"].items() if not torch.equal(one["model"][n], v)
    ]
    for name, read in FILES.items():
        same = read(folder / "log" / name) == read(unbroken / "log" / name)
        found += [] if same else [name]
    saved = TintedModel.from_pretrained(folder / "model", trunk=ToyNet()).state_dict()
    whole = TintedModel.from_pretrained(unbroken / "model", trunk=ToyNet()).state_dict()
    found += [f"model/{n}" for n, v in whole.items() if not torch.equal(saved[n], v)]
    return found + [p.name for p in (folder / "kept").glob("*/step_*")]


def killed(folder: Path, number: signal.Signals, delay: float) -> dict:
    process = fork(folder)
    time.sleep(delay)
    os.kill(process, number)
    _, status = os.waitpid(process, 0)
    hit = not (folder / "ended.pt").exists()
    moment = "learning" if list((folder / "kept").glob("*/step_*")) else "elsewhere"
    if hit and (folder / "log" / "coefficients.safetensors").exists():
        moment = "saving"
    _, last = os.waitpid(fork(folder), 0)
    return {"signal": number.name, "hit": hit, "moment": moment, "status": last}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    plotless()
    run(folder / "first")  # so that imports take no time later
    unbroken = folder / "unbroken"
    started = time.perf_counter()
    os.waitpid(fork(unbroken), 0)
    length, chance, report = time.perf_counter() - started, random.Random(0), []
    for number in SIGNALS:
        for kill in range(KILLS):
            own = folder / f"{number.name}-{kill}"
            share = (kill + chance.random()) / KILLS
            found = killed(own, number, share * length)
            found["differs"] = differences(own, unbroken)
            report.append(found)
            shutil.rmtree(own)
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
