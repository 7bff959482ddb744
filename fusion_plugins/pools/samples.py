"""Samples of any data set: looked at before anything slow, with errors that name them."""

from __future__ import annotations

import operator
import re
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset as ArrowDataset
from fusion_bench.modelpool import BaseModelPool
from fusion_bench.utils import instantiate
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from ..common.upstream import datasets_of
from .adapter import PoolAdapter
from .contents import stored_contents

LABEL_COLUMNS = ("label", "labels", "fine_label", "coarse_label")
_LOOKED_AT = 6  # samples beside the first two
_BY_NAMES = "its class names", "Give class names in the data set's order."


class SampleError(ValueError):
    """What is wrong with a sample, in one line."""

    def __init__(self, message: str):
        # From a DataLoader's worker it comes as a traceback, whose last line is ours.
        super().__init__(message.rpartition("SampleError: ")[2].strip())


class Samples(Dataset):
    """A task's data set seen through a reader; errors name the task and the sample.

    Args:
        task: The task.
        raw: What the user gave: anything with ``len`` and ``[index]``.
        read: Raw sample -> what is wanted of it.

    Raises:
        ValueError: `raw` has no length, or gives its samples only one after the other.
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
        """Read the first samples and a fixed handful.

        Raises:
            ValueError: One of them cannot be read, or there are none.
        """
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
        """Fail before anything is loaded if samples are missing or cannot be read.

        Looks at a few samples of each task.
        """
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


def part(sample: Any, columns: Sequence[str], place: int) -> Any:
    """One part of a raw sample: a column of a dict, or a place in a tuple."""
    if isinstance(sample, Mapping):
        return sample[find_column(sample, columns)]
    if isinstance(sample, (tuple, list)) and len(sample) > place:
        return sample[place]
    held = f" of {len(sample)}" if isinstance(sample, (tuple, list)) else ""
    raise ValueError(
        f"it is a {type(sample).__name__}{held}, expected a dict with the column"
        f" '{columns[0]}' or a tuple with it in place {place}."
    )


def find_column(names: Collection[str], columns: Sequence[str]) -> str:
    """The usual one of `columns`, else the only one that there is.

    Raises:
        ValueError: There is none, or there are several.
    """
    found = [name for name in columns if name in names]
    if found[:1] == [columns[0]] or len(found) == 1:
        return found[0]
    if found:
        problem = f"several columns could be its {columns[0]}: {found}"
    else:
        problem = f"it has no {columns[0]}, only the columns {sorted(names)}"
    raise ValueError(f"{problem}. Rename one to '{columns[0]}'.")


def label_columns(raw: Any, classes: int) -> Sequence[str]:
    """Where labels may be; of several columns the one that has so many classes."""
    features = raw.features if isinstance(raw, ArrowDataset) else {}
    fitting = [
        name
        for name in LABEL_COLUMNS
        if getattr(features.get(name), "num_classes", None) == classes
    ]
    return fitting if len(fitting) == 1 and "label" not in features else LABEL_COLUMNS


def check_labels(
    task: str, raw: Any, columns: Sequence[str], number: Callable[[Any], Any]
) -> list[Any]:
    """Every label, checked, where that costs no reading of samples; else none."""
    if isinstance(raw, ArrowDataset) and any(name in raw.features for name in columns):
        values = raw.with_format(None)[find_column(raw.features, columns)][:]
    elif isinstance(raw, list):
        values = Samples(task, raw, partial(part, columns=columns, place=1))
    else:
        return []
    labels = Samples(task, values, number)
    return [labels[index] for index in range(len(labels))]


def class_number(label: Any, classes: int) -> int:
    """A label as a whole number from 0 to `classes` - 1."""
    try:
        number = operator.index(label)
    except TypeError:
        raise ValueError(
            f"its label is {label!r}, expected a class number, 0 to {classes - 1}."
            " Turn names into numbers, for example with datasets' class_encode_column."
        ) from None
    if not 0 <= number < classes:
        hint = " Hidden labels? Use a split that has them." if number < 0 else ""
        raise ValueError(
            f"its label is {number}, but the task has the classes 0 to {classes - 1}."
            f"{hint} Correct the labels or the list of class names."
        )
    return number


def check_class_order(
    task: str, raw: Any, class_names: Sequence[str], said: Sequence[str] = _BY_NAMES
) -> None:
    """Raise if the data set itself gives a class another number than `class_names`."""
    features = raw.features if isinstance(raw, ArrowDataset) else {}
    columns = label_columns(raw, len(class_names))
    listed = [getattr(features.get(name), "names", None) for name in columns]
    listed += [getattr(raw, name, None) for name in ("class_names", "classes")]
    theirs = _places(next((x for x in listed if isinstance(x, (list, tuple))), ()))
    moved = {
        name: place
        for name, place in _places(class_names).items()
        if theirs.get(name, place) != place
    }
    # One of many names may just mean another class there, as in lists of ImageNet's.
    chained = {theirs[name] for name in moved} & set(moved.values())
    if chained or 10 * len(moved) > len(class_names):
        name, place = next(iter(moved.items()))
        raise ValueError(
            f"Task '{task}': class {place} is '{class_names[place]}' by {said[0]}, but"
            f" class {theirs[name]} by its data set. {said[1]}"
        )


def _places(names: Sequence[str]) -> dict[str, int]:
    """Plain name -> class, of names that occur once."""
    plain = [re.sub(r"[\W_]+", " ", str(name).casefold()).strip() for name in names]
    return {name: i for i, name in enumerate(plain) if plain.count(name) == 1}
