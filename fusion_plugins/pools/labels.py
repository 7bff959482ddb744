"""Labels of a task's samples, where a score asks for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .samples import Samples, class_number, label_columns, part


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
