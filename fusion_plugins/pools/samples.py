"""Samples of any data set: looked at before anything slow, with errors that name them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset as ArrowDataset
from fusion_bench.modelpool import BaseModelPool
from fusion_bench.utils import instantiate
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from ..common.identity import file_fingerprint, fingerprint
from ..common.upstream import datasets_of
from .adapter import PoolAdapter

_ROWS = 1000  # at once
_LOOKED_AT = 6  # samples beside the first two


class SampleError(ValueError):
    """What is wrong with a sample, in one line."""

    def __init__(self, message: str):
        # From a DataLoader's worker it comes as a traceback, whose last line is ours.
        super().__init__(message.rpartition("SampleError: ")[2].strip())


class Samples(Dataset):
    """A task's data set seen through a reader; errors name the task and the sample.

    Args:
        task: The task.
        raw: What the user gave: anything with ``len`` and ``[index]``; else a ValueError.
        read: Raw sample -> what is wanted of it.
    """

    def __init__(self, task: str, raw: Any, read: Callable[[Any], Any]):
        indexed = hasattr(raw, "__len__") and hasattr(raw, "__getitem__")
        if not indexed or isinstance(raw, (str, Mapping, IterableDataset)):
            holds = f" of {list(raw)}" if isinstance(raw, Mapping) else ""
            raise ValueError(
                f"Task '{task}': its data set is a {type(raw).__name__}{holds}, expected"
                " something with len() and [index]. Choose one split, load it without"
                " streaming, or give a list of samples."
            )
        self.task, self.raw, self._read = task, raw, read

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int) -> Any:
        index = range(len(self))[index]
        try:
            return self._read(self.raw[index])
        except Exception as error:
            reason = str(error)
            if not isinstance(error, ValueError):
                name = type(error).__name__
                reason = (
                    f"it cannot be read ({name}: {error}). Repair it or leave it out."
                )
            reason = " ".join(reason.split())
            raise SampleError(
                f"Task '{self.task}', sample {index}: {reason}"
            ) from error

    def contents(self) -> str | None:
        """A short name for all that is stored; None where only reading would tell."""
        return stored_contents(self.raw)

    def check(self) -> None:
        """Read the first samples and a fixed handful; ValueError if there are none."""
        if len(self) == 0:
            raise ValueError(
                f"The dataset of task '{self.task}' is empty. Check its path and split."
            )
        some = np.random.default_rng(0).integers(len(self), size=_LOOKED_AT)
        for index in sorted({0, min(1, len(self) - 1), *some.tolist()}):
            self[index]


class SampledAdapter(PoolAdapter):
    """Families that read samples of any data set."""

    def __init__(self, modelpool: BaseModelPool, task_info: Mapping | None = None):
        super().__init__(modelpool, task_info)
        self._opened: dict[tuple[str, str], Any] = {}

    @abstractmethod
    def look(self, task: str, sample: Any) -> object:
        """Raise a ValueError unless a raw sample has what :meth:`read` needs of it."""

    @abstractmethod
    def read(self, task: str | None, sample: Any) -> Tensor:
        """A raw sample as the tensor to keep; needs :meth:`prepare`."""

    def check_datasets(self, split: str) -> None:
        """Fail before anything is loaded unless a few samples of each task can be read."""
        super().check_datasets(split)
        for task in self.tasks:
            Samples(task, self._raw(task, split), partial(self.look, task)).check()

    def _raw(self, task: str, split: str) -> Any:
        if (task, split) not in self._opened:
            self._opened[task, split] = listed_dataset(self.modelpool, task, split)
        return self._opened[task, split]

    def dataset(self, task: str, split: str) -> Samples:
        """A task's samples, encoded already; labels in them are never read."""
        return Samples(task, self._raw(task, split), partial(self.read, task))

    def encode(self, sample: Any) -> Tensor:
        return sample if isinstance(sample, Tensor) else self.read(None, sample)


def opened(listed: Any) -> Any:
    """A data set from its config, or the very object that was given."""
    configured = isinstance(listed, Mapping) and "_target_" in listed
    return instantiate(listed) if configured else listed


def listed_dataset(modelpool: BaseModelPool, task: str, split: str) -> Any:
    """A split of a task as the pool loads it, or the very object that the pool lists."""
    name = f"load_{split}_dataset"
    listed = datasets_of(modelpool, split)[task]
    own = not getattr(type(modelpool), name).__module__.startswith("fusion_bench.")
    if own or isinstance(listed, str):
        return getattr(modelpool, name)(task)
    return opened(listed)


def stored_contents(raw: Any) -> str | None:
    """A short name that changes with any sample, or None where only reading would tell.

    Args:
        raw: A data set of the library `datasets`, a list, tensors, or one that says so
            itself by a method `contents`. Pictures that are files count by their bytes.
    """
    try:
        if isinstance(raw, Subset):
            inner = stored_contents(raw.dataset)
            return inner and fingerprint(inner, list(raw.indices))
        if isinstance(raw, ArrowDataset):
            if raw.format["type"] == "custom":  # a transform may draw lots
                return None
            modes = {name: getattr(f, "mode", None) for name, f in raw.features.items()}
            modes = {name: mode for name, mode in modes.items() if mode is not None}
            return fingerprint(_rows(raw), *([modes] if modes else []))
        if isinstance(raw, TensorDataset):
            return fingerprint(raw.tensors)
        if isinstance(raw, (list, tuple)):
            return fingerprint(raw)
        return raw.contents() if hasattr(raw, "contents") else None
    except (TypeError, OSError):  # of other values, or in an archive
        return None


def _rows(raw: ArrowDataset) -> list[str]:
    """Of each block of rows."""
    blocks = raw.with_format("arrow").iter(_ROWS)
    return [fingerprint([_with_files(r) for r in b.to_pylist()]) for b in blocks]


def _with_files(value: Any) -> Any:
    """A stored value, with a picture's or a sound's file in the place of its path."""
    if isinstance(value, Mapping):
        if value.keys() == {"bytes", "path"} and value["bytes"] is None:
            return file_fingerprint(value["path"])
        return {name: _with_files(entry) for name, entry in value.items()}
    return [_with_files(v) for v in value] if isinstance(value, list) else value
