"""A task's data as tensors, ready for training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .builtin import TaskData, task_seed
from .datasets import train_and_val

MEAN = STD = 0.5  # of every image processor here


@dataclass(frozen=True)
class ImageTensors:
    """A task as tensors: uint8 images (N, 3, H, W) and labels (N,)."""

    name: str
    classes: int
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


def to_tensors(task: TaskData) -> ImageTensors:
    """Without the validation tenth of the training images, which nobody trains on."""
    train, _ = train_and_val(len(task.y_train))

    def channels_first(images: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

    return ImageTensors(
        task.name,
        len(task.class_names),
        channels_first(task.x_train[train]),
        torch.from_numpy(task.y_train[train]),
        channels_first(task.x_test),
        torch.from_numpy(task.y_test),
    )


def normalise(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) -> float32 as the processors make them."""
    return (images.float() / 255 - MEAN) / STD


def generator(seed: int, name: str) -> torch.Generator:
    """Random numbers of a task, whatever other tasks the pool has."""
    state = np.random.SeedSequence(task_seed(seed, name)).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))


@torch.no_grad()
def accuracy(logits: Callable[[Tensor], Tensor], task: ImageTensors) -> float:
    """Share of test images whose most probable class is right, 0 to 1.

    Args:
        logits: Normalised images (N, 3, H, W) -> (N, classes).
        task: Its images and labels.
    """
    parts = task.x_test.split(500)
    found = torch.cat([logits(normalise(part)).argmax(1) for part in parts])
    return float((found == task.y_test).double().mean())
