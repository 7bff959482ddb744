"""Unlabelled samples of a task, and which of them a draw sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

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
    """Where a task's unlabelled batches come from.

    Attributes:
        count: Samples of the task.
        visited: Those that the run will see on this process, ascending.
    """

    count: int
    visited: np.ndarray

    def batch(self, draws: Iterable[int]) -> Batch:
        """The samples of these draws that belong to this process."""

    def inputs(self, samples: np.ndarray) -> Tensor:
        """Model inputs of the given samples, in their order."""

    def monitored(self, count: int) -> Tensor:
        """Inputs of a fixed choice of up to `count` samples."""

    def fingerprint(self) -> str:
        """A short name for a handful of the samples, however they are kept."""

    def contents(self) -> dict[str, str]:
        """A short name for all of them, by how they were read; empty if none is known."""


@dataclass(frozen=True)
class TaskSamples:
    """A task's encoded samples, and which of them a draw sees on this process.

    Attributes:
        task: Task name; part of what the order depends on.
        dataset: Map-style dataset of encoded samples (tensors of one shape).
        order: Decides which samples a draw sees.
        decode: Stored tensors -> model inputs, on the device.
        device: Where the model runs.
        rank, world: This process, and how many there are.

    Raises:
        ValueError: The dataset is empty, or the batch smaller than `world`.
    """

    task: str
    dataset: Dataset
    order: SampleOrder
    decode: Callable[[Tensor], Tensor]
    device: torch.device | str
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if len(self) == 0:
            raise ValueError(
                f"The dataset of task '{self.task}' is empty: there is nothing to adapt"
                " on. Check its path, split and fraction."
            )
        if self.order.batch_size < self.world:
            raise ValueError(
                f"batch_size is {self.order.batch_size}, but {self.world} processes share"
                f" each batch. Use a batch_size of {self.world} or more, or fewer devices."
            )

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def indices(self, draw: int) -> np.ndarray:
        """The samples of a draw that belong to this process."""
        every = self.order.batch(self.task, len(self), draw)
        return every[self.rank :: self.world]

    def monitored(self, count: int) -> np.ndarray:
        """A fixed choice of up to `count` samples, the same on every process."""
        return self.order.subset(self.task, len(self), count)

    def visited(self, draws: Iterable[int], monitored: int) -> np.ndarray:
        """All samples that these draws and the monitoring see, ascending."""
        wanted = [self.indices(draw) for draw in draws]
        return np.unique(np.concatenate([*wanted, self.monitored(monitored)]))

    def encoded(self, samples: np.ndarray) -> Tensor:
        """Some samples, encoded now."""
        return torch.stack([self.dataset[int(i)] for i in samples])

    def decoded(self, stored: Tensor) -> Tensor:
        """Model inputs, on the device."""
        return self.decode(stored.to(self.device, non_blocking=True))

    def labelled(self, own: list[np.ndarray], inputs: Tensor) -> Batch:
        """A batch of the samples of several draws."""
        numbers = np.repeat(np.arange(len(own)), [len(part) for part in own])
        samples = torch.from_numpy(np.concatenate(own))
        return Batch(inputs, samples, torch.from_numpy(numbers))


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
        count = len(dataset)  # type: ignore[arg-type]
        self._samples = np.arange(count) if samples is None else samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Tensor:
        return self._encode(self._dataset[int(self._samples[index])])
