"""The engine of a learned method on random towers, put together as its run() does.

    python benchmarks/adaptation_engine.py [--size small] [--threads 1] [--out FILE]

times what a step does with task vectors, by how they are kept: merging 8 of them and
reading their coefficients' gradient, on the processor.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import adaptation_timing as timing
import common
import torch
from adaptation_stand_ins import StandIn

from fusion_plugins.adaptation import (
    AdaptationTask,
    Callback,
    Coefficients,
    Engine,
    MergedWeights,
    Predictor,
    SampleOrder,
)
from fusion_plugins.learned.algorithm import LearnedMergeAlgorithm
from fusion_plugins.pools.adapter import PoolAdapter

INITIAL = 0.3


def make_predictor(given: StandIn) -> Predictor:
    """The experts with their heads."""
    job = given.job
    storage, offload = job["task_vector_dtype"], job.get("offload", False)
    weights = MergedWeights(
        given.tower, given.task_vectors(), given.device, storage, offload
    )
    tasks = [AdaptationTask(n, given.source(n), given.head(n)) for n in given.names]
    return Predictor(weights, tasks, given.features, given.fabric)


def make_engine(
    given: StandIn,
    algorithm: LearnedMergeAlgorithm,
    callbacks: list[Callback],
) -> Engine:
    """What trains; `callbacks` come after the method's own.

    Args:
        given: Towers, images, heads and the job.
        algorithm: Its options decide objective and schedule.
        callbacks: To watch the steps.
    """
    job, objective = given.job, algorithm.make_objective()
    # The class itself: what an adapter says of itself where nothing else is known.
    adapter = type("NoPool", (PoolAdapter,), {"tasks": given.names})
    predictor = make_predictor(given)
    weights = predictor.weights
    coefficients = Coefficients(
        job["tasks"], len(weights.keys), init=INITIAL, clamp=objective.clamps
    ).to(given.device)
    start = objective.prepare(predictor, adapter)
    learner = start(weights, coefficients)
    return Engine(
        Predictor(weights, learner.tasks, given.features, given.fabric),
        coefficients,
        learner.loss,
        objective.schedule(job["tasks"], SampleOrder(0, job["batch"])),
        learner.optimizer(learner.groups, lr=algorithm.options.lr),
        compile=job.get("compile", False),
        callbacks=[*learner.callbacks, *callbacks],
    )


def measure_storage(size: str, storage: str) -> dict:
    """Least seconds of 7, of wall and of processor time, and the bytes that are kept."""
    job = {"size": size, "tasks": 8, "batch": 1, "batches": 1, "device": "cpu"}
    job |= {"precision": timing.PRECISIONS["float32"], "memory_cap": None}
    weights = make_predictor(StandIn(job | {"task_vector_dtype": storage})).weights
    weights.train_moved_layers()
    coefficients = torch.full((8, len(weights.keys)), INITIAL)

    def gradient() -> None:
        for parameter in weights.module.parameters():
            parameter.grad = torch.ones_like(parameter)
        weights.coefficient_gradient()

    figures = {"bytes": weights.stored_bytes}
    for name, work in (
        ("merging", lambda: weights.materialise(coefficients)),
        ("gradient", gradient),
    ):
        wall, processor = zip(*(_seconds(work) for _ in range(7)), strict=True)
        figures |= {name: min(wall), f"{name}, processor": min(processor)}
    return figures


def _seconds(work: Callable[[], object]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="small", help="small, vit-b32, vit-l14")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("task-vectors.json"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    report = {"machine": common.machine(), "storage": {}}
    common.print_machine(report["machine"])
    for storage in ("float32", "bfloat16", "int8", "int4"):
        report["storage"][storage] = measure_storage(options.size, storage)
    rows = [
        [name, f"{values['bytes'] / 1e6:.0f}"]
        + [f"{value:.4f}" for key, value in values.items() if key != "bytes"]
        for name, values in report["storage"].items()
    ]
    columns = ["", "MB", "merging s", "processor s", "gradient s", "processor s"]
    common.table(f"8 task vectors of {options.size}", columns, rows)
    common.save(report, options.out)


if __name__ == "__main__":
    main()
