"""A task's data as tensors, ready for training."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizerFast

from .clip import prompt_tokens
from .datasets import train_and_val
from .recipe import TaskData


@dataclass(frozen=True)
class TaskTensors:
    """A task as tensors: uint8 images (N, 3, H, W), labels (N,), prompts (P, C, L)."""

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    tokens: Tensor


def to_tensors(task: TaskData, tokenizer: CLIPTokenizerFast) -> TaskTensors:
    """Without the validation tenth of the training images, which nobody trains on."""
    train, _ = train_and_val(len(task.y_train))

    def channels_first(images: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

    return TaskTensors(
        name=task.name,
        x_train=channels_first(task.x_train[train]),
        y_train=torch.from_numpy(task.y_train[train]),
        x_test=channels_first(task.x_test),
        y_test=torch.from_numpy(task.y_test),
        tokens=prompt_tokens(task, tokenizer),
    )
