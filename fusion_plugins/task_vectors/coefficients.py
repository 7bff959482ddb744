"""Coefficients of a linear merge: one per task, tensor or row."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .collection import TaskVectors

# Coefficients per tensor name: shape (tasks,), or (tasks, rows) for one per row.
Coefficients = Mapping[str, Tensor]


def as_coefficients(task_vectors: TaskVectors, values: ArrayLike) -> dict[str, Tensor]:
    """Spread task-wise (tasks,) or layer-wise (tasks, tensors) values over the tensors.

    Args:
        task_vectors: Whose tensors.
        values: Coefficients; a tensor, an array or a list.

    Raises:
        ValueError: The shape is neither, or they are no real numbers.
    """
    values = _real_numbers(values)
    tasks, keys = len(task_vectors.tasks), task_vectors.keys
    if tuple(values.shape) == (tasks,):
        return {key: values for key in keys}
    if tuple(values.shape) == (tasks, len(keys)):
        return {key: values[:, column] for column, key in enumerate(keys)}
    raise ValueError(
        f"coefficients have shape {tuple(values.shape)}, expected ({tasks},) for one per"
        f" task or ({tasks}, {len(keys)}) for one per task and tensor. Saved ones fit only"
        " the pool they were learned on."
    )


def _real_numbers(values: Any) -> Tensor:
    found = values
    if not isinstance(found, Tensor):
        with suppress(TypeError, ValueError, RuntimeError):
            found = torch.as_tensor(np.asarray(values), device="cpu")
    if not isinstance(found, Tensor) or found.is_complex():
        raise ValueError(
            f"coefficients are {values!r}, expected real numbers: a tensor, an array or a"
            " list."
        )
    return found


def check_coefficients(
    task_vectors: TaskVectors, key: str, values: Tensor | None
) -> None:
    """Raise ValueError unless `values` is (tasks,) or (tasks, rows) of the tensor."""
    if values is None:
        raise ValueError(
            f"There are no coefficients for tensor '{key}': use as_coefficients()."
        )
    tasks, shape = len(task_vectors.tasks), task_vectors.shape(key)
    rows = shape[0] if len(shape) > 1 else 1
    if tuple(values.shape) not in {(tasks,), (tasks, rows)}:
        raise ValueError(
            f"coefficients of '{key}' have shape {tuple(values.shape)}, expected"
            f" ({tasks},) or ({tasks}, {rows}) for (tasks,) or (tasks, rows)."
        )
    if not torch.isfinite(values).all():
        raise ValueError(
            f"coefficients of '{key}' hold NaN or Inf: {values.tolist()}. Check the"
            " scaling, or where they were saved."
        )
