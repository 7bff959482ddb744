"""An engine that runs again and again and is killed; for test_adaptation_checkpoints."""

import os
import random
import signal
import time
from pathlib import Path

import torch
from toy_engine import make_engine, make_guard, make_predictor

from fusion_plugins.adaptation import (
    Callback,
    Checkpoints,
    Progress,
    checkpoints,
)

STEPS, EVERY, KILLS = 60, 3, 5


class Telltale(Callback):
    """Writes each step's number into a pipe, and waits at a step so that a kill can hit."""

    def __init__(self, pipe: int, wait_at: int):
        self.pipe, self.wait_at = pipe, wait_at

    def on_start(self, engine) -> None:
        os.write(self.pipe, bytes([engine.step]))

    def on_step(self, engine, report) -> None:
        os.write(self.pipe, bytes([engine.step]))
        time.sleep(60 if engine.step == self.wait_at else 0.002)


def run(folder: Path, watchers: tuple = ()) -> dict:
    """One run to its end, the way methods put it together."""
    predictor = make_predictor()
    progress, guard = Progress("toy"), make_guard(predictor, 20, every=7)
    saver = Checkpoints(
        folder / "checkpoints",
        {"toy": 1},
        every=EVERY,
        extra={"history": progress, "guard": guard},
    )
    callbacks = [saver.restorer(), progress, guard, saver, *watchers]
    engine = make_engine(steps=STEPS, lr=3e-2, predictor=predictor, callbacks=callbacks)
    with saver:
        engine.run()
        saver.forget()
    weights = {k: v.clone() for k, v in engine.weights.module.state_dict().items()}
    return {
        "raw": engine.coefficients.raw.detach(),
        "weights": weights,
        "history": progress.history,
        "guard": guard.history,
        "best": guard.best,
        "optimizer": engine.optimizer.state_dict(),
    }


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_before_replacing() -> None:
    """Be killed when a checkpoint is written but not yet in its place."""
    checkpoints.os.replace = lambda *paths: die()


def die_while_clearing() -> None:
    """Be killed when the run has ended and its newest checkpoint is half removed."""
    remove = checkpoints.shutil.rmtree

    def half(path, **options):
        saved = sorted(Path(path).glob("step_*"))
        if saved:
            (saved[-1] / "state.safetensors").unlink()
            die()
        remove(path, **options)

    checkpoints.shutil.rmtree = half


def start(folder: Path, accident=None, wait_at: int = -1) -> tuple[int, int]:
    """Fork a run; gives its process id and the pipe it reports steps to."""
    reader, writer = os.pipe()
    process = os.fork()
    if process:
        os.close(writer)
        return process, reader
    os.close(reader)
    try:
        if accident is not None:
            accident()
        torch.save(run(folder, (Telltale(writer, wait_at),)), folder / "ended.pt")
    finally:
        os._exit(0)


def steps_seen(pipe: int, until: int) -> list[int]:
    """Step numbers, up to `until` or the end of the run."""
    seen = []
    while (data := os.read(pipe, 1)) and (seen.append(data[0]) or data[0] < until):
        pass
    return seen


def kill_at(folder: Path, step: int, delay: float) -> dict:
    process, pipe = start(folder, wait_at=step + 10)
    seen = steps_seen(pipe, until=step)
    time.sleep(delay)
    os.kill(process, signal.SIGKILL)
    return outcome(folder, process, pipe, seen)


def let_run(folder: Path, accident=None) -> dict:
    process, pipe = start(folder, accident)
    return outcome(folder, process, pipe, [])


def outcome(folder: Path, process: int, pipe: int, seen: list[int]) -> dict:
    seen += steps_seen(pipe, until=STEPS + 1)
    os.close(pipe)
    _, status = os.waitpid(process, 0)
    left = sorted(p.name for p in folder.glob("checkpoints/*/*_*"))
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return {"first": seen[0], "last": seen[-1], "killed": killed, "left": left}


def kill(folder: Path) -> list[dict]:
    """What happened in each run; the last, which ends, writes `ended.pt`."""
    torch.save(run(folder / "unbroken"), folder / "unbroken.pt")
    chance = random.Random(0)
    moments = sorted(chance.sample(range(4, STEPS - 12), KILLS))
    report = [kill_at(folder, m, chance.uniform(0, 0.008)) for m in moments]
    report.append(let_run(folder, die_before_replacing))
    report.append(let_run(folder, die_while_clearing))
    report.append(let_run(folder))
    return report
