"""Labels of a task's samples, and what a data set says of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset as ArrowDataset
from torch import Tensor

from .samples import LABEL_COLUMNS, Samples, class_number, label_columns, part


def class_counts(raw: Any) -> list[int]:
    """How many classes a data set says it has, of each column of labels that says so."""
    features = raw.features if isinstance(raw, ArrowDataset) else {}
    listed = [getattr(features.get(name), "num_classes", 0) for name in LABEL_COLUMNS]
    return [count for count in listed if count]


def read_labels(task: str, raw: Any, samples: np.ndarray, classes: int) -> Tensor:
    """Labels of some samples as class numbers.

    Args:
        task: The task.
        raw: Its data set.
        samples: Indices.
        classes: How many there are.

    Raises:
        ValueError: A sample has no label, or one that is no class.
    """
    columns = label_columns(raw, classes)

    def read(sample: Any) -> int:
        return class_number(part(sample, columns, 1), classes)

    labels = Samples(task, raw, read)
    return torch.tensor([labels[int(index)] for index in samples])
