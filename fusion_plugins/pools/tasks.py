"""From a pool adapter to the batch sources and heads that the engine trains on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from lightning import Fabric
from torch.utils.data import Dataset

from ..adaptation import (
    AdaptationTask,
    BatchSource,
    EncodedDataset,
    KeptSamples,
    SampleOrder,
    StreamedSamples,
    TaskSamples,
)
from .adapter import PoolAdapter

KEEP_ON = ("cpu", "device", "none")


@dataclass(frozen=True)
class DataOptions:
    """Which samples to adapt on, and where they are kept.

    Attributes:
        split: ``test``, ``val`` or ``train``.
        fraction: Share of each dataset that takes part, chosen by the seed.
        max_samples: At most this many samples per task; None for no limit.
        keep_on: ``cpu``, ``device``, or ``none`` for streaming.
        workers: Processes that preprocess; None: where there is much to do one per core, 4 at most.
        monitored: Samples per task that the guard looks at.
    """

    split: str = "test"
    fraction: float = 1.0
    max_samples: int | None = None
    keep_on: str = "cpu"
    workers: int | None = None
    monitored: int = 0


@torch.no_grad()
def build_tasks(
    adapter: PoolAdapter,
    order: SampleOrder,
    draws: Mapping[str, Iterable[int]],
    options: DataOptions,
    fabric: Fabric,
) -> list[AdaptationTask]:
    """One engine task per expert: its preprocessed samples and its frozen head.

    Args:
        adapter: Of the pool.
        order: Of the samples.
        draws: Task name -> the draws that the run will see.
        options: Which samples.
        fabric: Device and processes.
    """
    adapter.prepare(fabric.device)
    datasets = {task: adapter.dataset(task, options.split) for task in adapter.tasks}
    for dataset in datasets.values() if options.keep_on != "none" else ():
        adapter.keep(dataset)
    samples = {
        task: TaskSamples(
            task,
            EncodedDataset(
                dataset, adapter.encode, chosen_samples(task, dataset, order, options)
            ),
            order,
            adapter.decode,
            fabric.device,
            fabric.global_rank,
            fabric.world_size,
        )
        for task, dataset in datasets.items()
    }
    heads = adapter.heads()
    return [
        AdaptationTask(
            task,
            _source(samples[task], draws[task], options, fabric),
            heads[task].to(fabric.device),
        )
        for task in adapter.tasks
    ]


def chosen_samples(
    task: str, dataset: Dataset, order: SampleOrder, options: DataOptions
) -> np.ndarray | None:
    """Which samples of a task take part, ascending; None for all."""
    size = len(dataset)  # type: ignore[arg-type]
    count = int(np.ceil(size * options.fraction))
    if options.max_samples is not None:
        count = min(count, options.max_samples)
    if count >= size:
        return None
    return np.sort(order.subset(f"choice of {task}", size, count))


def _cores() -> int:
    """Those that this process may use."""
    known = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def _source(
    samples: TaskSamples, draws: Iterable[int], options: DataOptions, fabric: Fabric
) -> BatchSource:
    visited = samples.visited(draws, options.monitored)
    workers = min(4, _cores()) if options.workers is None else options.workers
    if options.keep_on == "none":
        return StreamedSamples(samples, visited, workers)
    place = fabric.device if options.keep_on == "device" else "cpu"
    return KeptSamples(samples, visited, place, workers, fabric.is_global_zero)
