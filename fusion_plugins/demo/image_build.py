"""What the builds of image pools share: tensors, the training loop, what is saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from .builtin import AnyRecipe, TaskData, task_seed
from .datasets import train_and_val
from .npz_folder import KEYS
from .pool_folder import save_model

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


def fit(
    model: nn.Module,
    loss: Callable[[], Tensor],
    steps: int,
    optimiser: Optimizer,
    schedule: LRScheduler,
    on_step: Callable[[], object],
) -> None:
    """Train in place; `loss` draws a batch, `on_step` is called after each step."""
    model.train()
    for _ in range(steps):
        value = loss()
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()
        on_step()
    model.eval()


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


@contextmanager
def training(recipe: AnyRecipe) -> Iterator[tqdm]:
    """Seed torch for one pool, leave the caller's state, count the steps."""
    total = recipe.pretrain_steps + len(recipe.tasks) * recipe.expert_steps
    with torch.random.fork_rng(devices=[]), tqdm(total=total, unit="step") as bar:
        torch.manual_seed(recipe.seed)
        bar.set_description("Training the pool")
        yield bar


@contextmanager
def one_thread() -> Iterator[int]:
    """Let torch compute with one thread; gives how many it had.

    Models this small gain little from a second one, and stand still where other programs
    want the cores too. Results then do not depend on how many cores there are.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def save_pool(
    folder: Path,
    tasks: Sequence[TaskData],
    base: Any,
    experts: Mapping[str, Any],
    processor: Any,
    accuracy: Mapping[str, Mapping[str, float]],
) -> dict:
    """Write models and data; what `pool.json` says about them."""
    save_model(folder / "pretrained", base, processor)
    for name, expert in experts.items():
        save_model(folder / "experts" / name, expert, processor)
    (folder / "data").mkdir()
    for task in tasks:
        arrays: Any = {key: np.asarray(getattr(task, key)) for key in KEYS}
        np.savez_compressed(folder / "data" / f"{task.name}.npz", **arrays)
    return {"tasks": {t.name: _describe(t) for t in tasks}, "accuracy": accuracy}


def _describe(task: TaskData) -> dict:
    return {
        "class_names": list(task.class_names),
        "templates": list(task.templates),
        "train_images": len(task.y_train),
        "test_images": len(task.y_test),
    }
