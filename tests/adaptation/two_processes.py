"""Runs the engine on two processes; started by test_adaptation_processes.

    two_processes.py FOLDER

Each process writes `FOLDER/rank<n>.pt`.
"""

import sys
from pathlib import Path

import torch
from lightning import Fabric
from torch import nn
from toy_engine import TASKS, heads, make_engine

from fusion_plugins.adaptation import (
    Checkpoints,
    CollapseGuard,
    Progress,
    SampleOrder,
    SequentialSchedule,
    batching,
    checkpoints,
)

CASES = {
    "even": {"batch_size": 8},
    "odd": {"batch_size": 7},
    "one sample more": {"batch_size": 3},
    "task by task": {"batch_size": 5, "batch_tasks": False},
    "task-wise": {"batch_size": 6, "granularity": "task"},
}


def watched(folder: Path) -> tuple[list, CollapseGuard, Progress]:
    progress, guard = Progress("toy"), CollapseGuard(every=4, samples=20)
    extra = {"history": progress, "guard": guard}
    saver = Checkpoints(folder, {"toy": 1}, every=3, extra=extra)
    saver.on_end = lambda engine: None  # keep them for the test to see
    return [saver.restorer(), progress, guard, saver], guard, progress


def run_case(fabric: Fabric, folder: Path, options: dict) -> dict:
    callbacks, guard, progress = watched(folder)
    engine = make_engine(fabric=fabric, callbacks=callbacks, **options)
    engine.run()
    return {
        "raw": engine.coefficients.raw.detach(),
        "guard": guard.history,
        "losses": [entry["loss"] for entry in progress.history],
        "samples": sum(len(engine.tasks[0].source._indices(d)) for d in range(20)),
    }


def run_with_heads(fabric: Fabric) -> list[torch.Tensor]:
    """Tasks one after another, in rounds; each learns its own head as well."""
    engine = make_engine(fabric=fabric, batch_size=7)
    own = heads()
    for index, task in enumerate(engine.tasks):
        head = own[task.name].requires_grad_(True)
        fields = {"head": head, "parameters": tuple(head.parameters())}
        engine.tasks[index] = type(task)(task.name, task.source, **fields)
    engine.schedule = SequentialSchedule(TASKS, 4, SampleOrder(0, 7))
    learned = nn.ModuleList([engine.coefficients, *own.values()])
    engine.optimizer = torch.optim.Adam(learned.parameters(), lr=1e-2)
    engine.run()
    return [parameter.detach() for parameter in learned.parameters()]


def uneven_memory(fabric: Fabric) -> int:
    """Groups where the first process has far less memory than the second."""
    engine = make_engine(fabric=fabric)
    engine._prepare()
    free, batching._budget = batching._budget, lambda d: 10**9 * fabric.global_rank
    groups = list(batching.plan_groups(engine, "auto")(engine.schedule.draws(0)))
    batching._budget = free
    return len(groups)


def everything(fabric: Fabric, folder: Path) -> None:
    torch.set_num_threads(1)
    written = []
    save = checkpoints.save_file
    checkpoints.save_file = lambda *args: (written.append(1), save(*args))
    results = {
        name: run_case(fabric, folder / name, options)
        for name, options in CASES.items()
    }
    results["heads"] = run_with_heads(fabric)
    results["groups"] = uneven_memory(fabric)
    results["written"] = len(written)
    torch.save(results, folder / f"rank{fabric.global_rank}.pt")


def main(folder: Path) -> None:
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp_fork")
    fabric.launch(everything, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
