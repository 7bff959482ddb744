"""The engine on two processes; for test_adaptation_processes."""

from dataclasses import replace
from pathlib import Path

import torch
from lightning import Fabric
from toy_engine import (
    TASKS,
    heads,
    information,
    make_engine,
    make_guard,
    make_predictor,
)

from fusion_plugins.adaptation import (
    Checkpoints,
    CollapseGuard,
    JointSchedule,
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
    "a term of whole draws": {"batch_size": 7, "loss": information},
}


def watched(folder: Path, predictor) -> tuple[list, CollapseGuard, Progress]:
    progress, guard = Progress("toy"), make_guard(predictor, 20, every=4)
    extra = {"history": progress, "guard": guard}
    writes = predictor.fabric.is_global_zero
    saver = Checkpoints(folder, {"toy": 1}, every=3, extra=extra, writes=writes)
    return [saver.restorer(), progress, guard, saver], guard, progress


def run_case(fabric: Fabric, folder: Path, options: dict) -> dict:
    batch_size = options.pop("batch_size")
    predictor = make_predictor(fabric=fabric, batch_size=batch_size)
    callbacks, guard, progress = watched(folder, predictor)
    engine = make_engine(predictor=predictor, callbacks=callbacks, **options)
    engine.run()
    return {
        "raw": engine.coefficients.raw.detach(),
        "guard": guard.history,
        "losses": [entry["loss"] for entry in progress.history],
        "samples": sum(len(engine.tasks[0].source.data.indices(d)) for d in range(20)),
    }


def run_with_heads(fabric: Fabric) -> list[torch.Tensor]:
    """Tasks one after another, in rounds; each learns its own head as well."""
    predictor = make_predictor(fabric=fabric, batch_size=7)
    own = heads()
    for index, task in enumerate(predictor.tasks):
        head = own[task.name].requires_grad_(True)
        fields = {"head": head, "parameters": tuple(head.parameters())}
        predictor.tasks[index] = replace(task, **fields)
    engine = make_engine(
        predictor=predictor,
        schedule=SequentialSchedule(TASKS, 4, SampleOrder(0, 7)),
        own=[p for head in own.values() for p in head.parameters()],
    )
    engine.run()
    return [parameter.detach() for parameter in engine.learned]


def uneven_memory(fabric: Fabric) -> int:
    """Groups where the first process has far less memory than the second."""
    predictor, first = make_predictor(fabric=fabric), JointSchedule(TASKS, 1, 2).draws(
        0
    )
    free, batching._budget = batching._budget, lambda d: 10**9 * fabric.global_rank
    groups = list(batching.plan_groups(predictor, first, "auto")(first))
    batching._budget = free
    return len(groups)


def everything(fabric: Fabric, folder: Path) -> None:
    torch.set_num_threads(1)
    written = []
    save = checkpoints.save
    checkpoints.save = lambda *args: (written.append(1), save(*args))[1]
    results = {
        name: run_case(fabric, folder / name, dict(options))
        for name, options in CASES.items()
    }
    results["heads"] = run_with_heads(fabric)
    results["groups"] = uneven_memory(fabric)
    results["written"] = len(written)
    torch.save(results, folder / f"rank{fabric.global_rank}.pt")


def main(folder: Path) -> None:
    """Each process writes `rank<n>.pt`."""
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp_fork")
    fabric.launch(everything, folder)
