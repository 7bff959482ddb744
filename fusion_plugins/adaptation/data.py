"""Unlabelled batches of a task, preprocessed once and kept, or streamed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from ..common.order import SampleOrder


@dataclass(frozen=True)
class Batch:
    """Model inputs of one or more draws of one task.

    Attributes:
        inputs: What the model takes, first dimension samples.
        samples: Which samples of the task they are, shape (samples,), on the CPU.
        draws: Which draw each sample came with, shape (samples,), counted from 0.
    """

    inputs: Tensor
    samples: Tensor
    draws: Tensor


class BatchSource(Protocol):
    """Where a task's unlabelled batches come from."""

    def batch(self, draws: Iterable[int]) -> Batch:
        """The samples of these draws that belong to this process."""

    def monitored(self, count: int) -> Tensor:
        """Inputs of a fixed choice of up to `count` samples."""


class TaskData:
    """A dataset as a batch source; every process takes its share of each batch.

    Args:
        task: Task name; part of what the order depends on.
        dataset: Map-style dataset of encoded samples (tensors of one shape).
        order: Decides which samples a draw sees.
        decode: Stored tensors -> model inputs, on the device.
        device: Where the model runs.
        rank, world: This process, and how many there are.
        keep_on: ``cpu``, ``device``, or ``none`` to encode samples anew each time.
        workers: Processes that encode samples.

    Raises:
        ValueError: The dataset is empty, or the batch smaller than `world`.
    """

    def __init__(
        self,
        task: str,
        dataset: Dataset,
        order: SampleOrder,
        decode: Callable[[Tensor], Tensor],
        device: torch.device,
        rank: int = 0,
        world: int = 1,
        keep_on: str = "cpu",
        workers: int = 0,
    ):
        if len(dataset) == 0:
            raise ValueError(
                f"The dataset of task '{task}' is empty: there is nothing to adapt on."
                " Check its path, split and fraction."
            )
        if order.batch_size < world:
            raise ValueError(
                f"batch_size is {order.batch_size}, but {world} processes share each"
                f" batch. Use a batch_size of {world} or more, or fewer devices."
            )
        self.task, self.dataset, self.order = task, dataset, order
        self.decode, self.device = decode, torch.device(device)
        self.rank, self.world = rank, world
        self.keep_on, self.workers = keep_on, workers
        self.visited = np.empty(0, dtype=int)  # samples a run will see, once prepared
        self._kept: Tensor | None = None
        self._place = np.full(len(dataset), -1)
        self._stream, self._next_draw = None, 0

    def batch(self, draws: Iterable[int]) -> Batch:
        draws = list(draws)
        own = [self._indices(draw) for draw in draws]
        samples = np.concatenate(own)
        if self.keep_on == "none":
            stored = torch.cat([self._streamed(draw) for draw in draws])
            inputs = self.decode(stored.to(self.device, non_blocking=True))
        else:
            inputs = self.inputs(samples)
        numbers = np.repeat(np.arange(len(own)), [len(part) for part in own])
        return Batch(inputs, torch.from_numpy(samples), torch.from_numpy(numbers))

    def _streamed(self, draw: int) -> Tensor:
        """Encoded samples of a draw; consecutive draws are prefetched by workers."""
        if self._stream is None or self._next_draw != draw:
            batches = _Draws(self, draw)
            workers = self.workers
            self._stream = iter(
                DataLoader(self.dataset, batch_sampler=batches, num_workers=workers)
            )
        self._next_draw = draw + 1
        return next(self._stream)

    def monitored(self, count: int) -> Tensor:
        return self.inputs(self.order.subset(self.task, len(self.dataset), count))

    def _indices(self, draw: int) -> np.ndarray:
        every = self.order.batch(self.task, len(self.dataset), draw)
        return every[self.rank :: self.world]

    def prepare(self, draws: Iterable[int], monitored: int, progress: bool) -> None:
        """Note which samples the draws will visit, encode them once and keep them."""
        wanted = [self._indices(draw) for draw in draws]
        wanted.append(self.order.subset(self.task, len(self.dataset), monitored))
        self.visited = visited = np.unique(np.concatenate(wanted))
        if self.keep_on == "none":
            return
        kept = None
        loader = self._loader(visited, batch_size=64)
        bar = tqdm(total=len(visited), desc=f"Cache {self.task}", disable=not progress)
        done = 0
        for part in loader:
            if kept is None:
                place = self.device if self.keep_on == "device" else "cpu"
                shape = (len(visited), *part.shape[1:])
                kept = torch.empty(shape, dtype=part.dtype, device=place)
            kept[done : done + len(part)] = part
            done += len(part)
            bar.update(len(part))
        bar.close()
        self._kept = kept
        self._place[visited] = np.arange(len(visited))

    def _loader(self, samples: np.ndarray, batch_size: int) -> DataLoader:
        subset = Subset(self.dataset, samples.tolist())
        # Starting workers costs more than a few hundred samples do.
        workers = self.workers if len(samples) > 256 else 0
        return DataLoader(subset, batch_size=batch_size, num_workers=workers)

    def inputs(self, samples: np.ndarray) -> Tensor:
        """Model inputs of the given samples, in their order."""
        places = self._place[samples]
        if self._kept is not None and (places >= 0).all():
            chosen = torch.from_numpy(places).to(self._kept.device)
            stored = self._kept[chosen]
        else:
            stored = torch.stack([self.dataset[int(i)] for i in samples])
        return self.decode(stored.to(self.device, non_blocking=True))


class _Draws:
    """The endless sequence of a task's batches from one draw on, for a DataLoader."""

    def __init__(self, data: TaskData, start: int):
        self._data, self._start = data, start

    def __iter__(self) -> Iterator[list[int]]:
        for draw in itertools.count(self._start):
            yield self._data._indices(draw).tolist()


class EncodedDataset(Dataset):
    """A dataset seen through an encoder, without its labels.

    Args:
        dataset: Map-style dataset of raw samples.
        encode: Raw sample -> tensor to store.
        samples: Which samples take part; all by default.
    """

    def __init__(
        self,
        dataset: Dataset,
        encode: Callable[[object], Tensor],
        samples: np.ndarray | None = None,
    ):
        self._dataset, self._encode = dataset, encode
        self._samples = np.arange(len(dataset)) if samples is None else samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Tensor:
        return self._encode(self._dataset[int(self._samples[index])])
