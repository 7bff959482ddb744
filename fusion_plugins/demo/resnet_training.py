"""Train small ResNets: one classifier of all tasks, then an expert per task."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
)

from .recipe import ResNetRecipe
from .tensors import MEAN, STD, ImageTensors, generator, normalise

_RISING = 0.1  # share of the steps


def make_image_processor(size: int) -> ConvNextImageProcessor:
    """Resize to `size` pixels a side and scale to -1..1."""
    return ConvNextImageProcessor(
        size={"shortest_edge": size},
        crop_pct=1.0,
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )


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
    on_step: Callable[[], None],
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
    steps, lr = recipe.pretrain_steps, recipe.pretrain_lr
    _train(
        model, torch.cat(images), torch.cat(labels), steps, lr, recipe, draw, on_step
    )


def train_expert(
    pretrained: ResNetForImageClassification,
    task: ImageTensors,
    offset: int,
    recipe: ResNetRecipe,
    on_step: Callable[[], None],
) -> ResNetForImageClassification:
    """A copy fine-tuned on one task; its head starts as the task's rows of the base's.

    Args:
        pretrained: The base.
        task: What to train on.
        offset: Where the task's classes start in the base's head.
        recipe: How to.
        on_step: Called after each step.
    """
    expert = make_resnet(recipe.width, task.classes)
    rows = slice(offset, offset + task.classes)
    state = copy.deepcopy(pretrained.state_dict())
    for name in ("classifier.1.weight", "classifier.1.bias"):
        state[name] = state[name][rows].clone()
    expert.load_state_dict(state)
    draw = generator(recipe.seed, task.name)
    images, labels = task.x_train, task.y_train
    steps, lr = recipe.expert_steps, recipe.expert_lr
    _train(expert, images, labels, steps, lr, recipe, draw, on_step)
    return expert


def _train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    steps: int,
    lr: float,
    recipe: ResNetRecipe,
    draw: torch.Generator,
    on_step: Callable[[], None],
) -> None:
    decay = recipe.weight_decay
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, lr, max(steps, 2), pct_start=_RISING
    )
    model.train()
    for _ in range(steps):
        pick = torch.randint(len(labels), (recipe.batch_size,), generator=draw)
        logits = model(normalise(images[pick])).logits
        optimiser.zero_grad()
        cross_entropy(logits, labels[pick]).backward()
        optimiser.step()
        schedule.step()
        on_step()
    model.eval()
