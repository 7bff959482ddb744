"""Build a pool of small ResNets: one classifier of all tasks, then an expert per task."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
)

from .builtin import TaskData
from .image_build import (
    MEAN,
    STD,
    ImageTensors,
    accuracy,
    fit,
    generator,
    normalise,
    save_pool,
    to_tensors,
    training,
)
from .npz_folder import load_tasks
from .pool_folder import build_folder, cached_root
from .recipe import ResNetRecipe

_RISING = 0.1  # share of the steps


def ensure_resnet_pool(recipe: ResNetRecipe) -> Path:
    """The folder of the pool of built-in tasks, built first if it is not there."""
    return build_resnet_pool(recipe, cached_root("demo-resnet", recipe))


def build_resnet_pool(
    recipe: ResNetRecipe, root: str | os.PathLike, data: str | Path | None = None
) -> Path:
    """Train and save a pool at `root`; see `build_folder`.

    Args:
        recipe: Sizes, steps, seed, tasks.
        root: The new folder; must not exist or be empty.
        data: Folder of ``NAME.npz`` files; tasks without one are built in.

    Raises:
        ValueError: `root` holds something else, or a task cannot be read.
    """

    def write(folder: Path) -> dict:
        return _write_pool(folder, recipe, load_tasks(recipe, data))

    return build_folder(root, recipe, write)


def _write_pool(folder: Path, recipe: ResNetRecipe, tasks: Sequence[TaskData]) -> dict:
    sets = [to_tensors(task) for task in tasks]
    starts = [sum(data.classes for data in sets[:index]) for index in range(len(sets))]
    placed, experts = list(zip(sets, starts, strict=True)), {}
    with training(recipe) as bar:
        base = make_resnet(recipe.width, sum(data.classes for data in sets))
        pretrain(base, sets, recipe, bar.update)
        for data, start in placed:
            experts[data.name] = train_expert(base, data, start, recipe, bar.update)
    scores = {
        "pretrained": {data.name: _score(base, data, start) for data, start in placed},
        "experts": {data.name: _score(experts[data.name], data) for data in sets},
    }
    # To a size and a scale of -1..1.
    processor = ConvNextImageProcessor(
        size={"shortest_edge": recipe.image_size},
        crop_pct=1.0,
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )
    return save_pool(folder, tasks, base, experts, processor, scores)


def _score(model: nn.Module, data: ImageTensors, start: int = 0) -> float:
    """Accuracy of the classes that begin at `start` in the model's head."""
    classes = slice(start, start + data.classes)
    return accuracy(lambda pixels: model(pixels).logits[:, classes], data)


def make_resnet(width: int, classes: int) -> ResNetForImageClassification:
    """An untrained ResNet of three stages with one block each."""
    config = ResNetConfig(
        embedding_size=width,
        hidden_sizes=[width, 2 * width, 4 * width],
        depths=[1, 1, 1],
        layer_type="basic",
        num_labels=classes,
    )
    return ResNetForImageClassification(config)


def pretrain(
    model: nn.Module,
    tasks: Sequence[ImageTensors],
    recipe: ResNetRecipe,
    on_step: Callable[[], object],
) -> None:
    """Train a classifier of all tasks' classes on some images of each, in place."""
    draw = generator(recipe.seed, "pretraining")
    images, labels, offset = [], [], 0
    for task in tasks:
        order = torch.randperm(len(task.y_train), generator=draw)
        chosen = order[: recipe.pretrain_images]
        images.append(task.x_train[chosen])
        labels.append(task.y_train[chosen] + offset)
        offset += task.classes
    data, steps = (torch.cat(images), torch.cat(labels)), recipe.pretrain_steps
    _train(model, data, steps, recipe.pretrain_lr, recipe, draw, on_step)


def train_expert(
    pretrained: ResNetForImageClassification,
    task: ImageTensors,
    offset: int,
    recipe: ResNetRecipe,
    on_step: Callable[[], object],
) -> ResNetForImageClassification:
    """A copy fine-tuned on one task; its head starts as the task's rows of the base's.

    `offset` is where the task's classes start in the base's head.
    """
    expert = make_resnet(recipe.width, task.classes)
    rows = slice(offset, offset + task.classes)
    state = copy.deepcopy(pretrained.state_dict())
    for name in ("classifier.1.weight", "classifier.1.bias"):
        state[name] = state[name][rows].clone()
    expert.load_state_dict(state)
    draw, data = generator(recipe.seed, task.name), (task.x_train, task.y_train)
    steps, lr = recipe.expert_steps, recipe.expert_lr
    _train(expert, data, steps, lr, recipe, draw, on_step)
    return expert


def _train(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    steps: int,
    lr: float,
    recipe: ResNetRecipe,
    draw: torch.Generator,
    on_step: Callable[[], object],
) -> None:
    decay, (images, labels) = recipe.weight_decay, data
    adamw = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        adamw, lr, max(steps, 2), pct_start=_RISING
    )

    def loss() -> Tensor:
        pick = torch.randint(len(labels), (recipe.batch_size,), generator=draw)
        return cross_entropy(model(normalise(images[pick])).logits, labels[pick])

    fit(model, loss, steps, adamw, schedule, on_step)
