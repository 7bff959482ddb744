"""Columns and labels of a task's samples, and what a data set says of its classes."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset as ArrowDataset
from torch import Tensor

from .samples import Samples

LABEL_COLUMNS = ("label", "labels", "fine_label", "coarse_label")
_BY_NAMES = "its class names", "Give class names in the data set's order."


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
    """The usual one of `columns`, else the only one that there is, or ValueError."""
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
    fits = [n for n in LABEL_COLUMNS if _said(raw, n, "num_classes") == classes]
    usual = isinstance(raw, ArrowDataset) and "label" in raw.features
    return fits if len(fits) == 1 and not usual else LABEL_COLUMNS


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


def class_number(label: Any, classes: int | None = None) -> int:
    """A label as a whole number from 0 to `classes` - 1, where that is known."""
    last = "" if classes is None else f" to {classes - 1}"
    try:
        number = operator.index(label)
    except TypeError:
        raise ValueError(
            f"its label is {label!r}, expected a class number, 0{last or ' or more'}."
            " Turn names into numbers, for example with datasets' class_encode_column."
        ) from None
    if number < 0 or (classes is not None and number >= classes):
        hint = " Hidden labels? Use a split that has them." if number < 0 else ""
        raise ValueError(
            f"its label is {number}, but the task has the classes 0{last or ', 1, ...'}."
            f"{hint} Correct the labels or the list of class names."
        )
    return number


def check_class_order(
    task: str, raw: Any, class_names: Sequence[str], said: Sequence[str] = _BY_NAMES
) -> None:
    """Raise if the data set itself gives a class another number than `class_names`."""
    columns = label_columns(raw, len(class_names))
    listed = [_said(raw, name, "names") for name in columns]
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


def class_counts(raw: Any) -> list[int]:
    """How many classes a data set says it has, of each column of labels that says so."""
    listed = [_said(raw, name, "num_classes") for name in LABEL_COLUMNS]
    return [count for count in listed if count]


def _said(raw: Any, column: str, what: str) -> Any:
    """What a data set itself says of the labels in a column; None if nothing."""
    features = raw.features if isinstance(raw, ArrowDataset) else {}
    return getattr(features.get(column), what, None)


def check_first_label(task: str, raw: Any) -> None:
    """Raise ValueError unless the first sample has a class number."""
    names = raw.features if isinstance(raw, ArrowDataset) else ()
    if (
        sum(name in names for name in LABEL_COLUMNS) < 2
    ):  # else the model's classes tell
        Samples(task, raw, lambda s: class_number(part(s, LABEL_COLUMNS, 1)))[0]


def read_labels(task: str, raw: Any, samples: np.ndarray, classes: int) -> Tensor:
    """Labels of the samples at some indices as class numbers, or ValueError."""
    columns = label_columns(raw, classes)

    def read(sample: Any) -> int:
        return class_number(part(sample, columns, 1), classes)

    labels = Samples(task, raw, read)
    return torch.tensor([labels[int(index)] for index in samples])
