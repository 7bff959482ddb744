"""From a pool adapter to the batch sources and heads that the engine trains on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from lightning import Fabric

from ..adaptation import AdaptationTask, EncodedDataset, SampleOrder, TaskData
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
        workers: Processes that preprocess; None: 4 where there is much to do.
    """

    split: str = "test"
    fraction: float = 1.0
    max_samples: int | None = None
    keep_on: str = "cpu"
    workers: int | None = None


def build_tasks(
    adapter: PoolAdapter, order: SampleOrder, options: DataOptions, fabric: Fabric
) -> list[AdaptationTask]:
    """One engine task per expert: its unlabelled batches and its frozen head.

    Raises:
        ValueError: A dataset is empty.
    """
    device = fabric.device
    adapter.prepare(device)
    datasets = {task: adapter.dataset(task, options.split) for task in adapter.tasks}
    sources = {
        task: TaskData(
            task,
            EncodedDataset(
                dataset, adapter.encode, _chosen(task, dataset, order, options)
            ),
            order,
            adapter.decode,
            device,
            fabric.global_rank,
            fabric.world_size,
            options.keep_on,
            4 if options.workers is None else options.workers,
        )
        for task, dataset in datasets.items()
    }
    heads = adapter.heads()
    return [
        AdaptationTask(task, sources[task], heads[task].to(device))
        for task in adapter.tasks
    ]


def _chosen(task: str, dataset, order: SampleOrder, options: DataOptions):
    count = int(np.ceil(len(dataset) * options.fraction))
    if options.max_samples is not None:
        count = min(count, options.max_samples)
    if count >= len(dataset):
        return None
    return np.sort(order.subset(f"choice of {task}", len(dataset), count))


def prepare_tasks(
    tasks: Iterable[AdaptationTask],
    draws: Mapping[str, Iterable[int]],
    monitored: int,
    progress: bool,
) -> None:
    """Preprocess, once, the samples that a run will visit.

    Args:
        tasks: As built by :func:`build_tasks`.
        draws: Task name -> draws it will see.
        monitored: Samples per task that the guard looks at.
        progress: Show progress bars.
    """
    with torch.no_grad():
        for task in tasks:
            task.source.prepare(draws[task.name], monitored, progress)
