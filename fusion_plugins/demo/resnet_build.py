"""Build a pool of small ResNets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from .builtin import TaskData
from .datasets import describe_tasks, save_task
from .npz_folder import load_tasks
from .pool_folder import build_folder, cached_root, save_model
from .recipe import ResNetRecipe
from .resnet_training import make_image_processor, make_resnet, pretrain, train_expert
from .tensors import ImageTensors, accuracy, to_tensors


def ensure_resnet_pool(recipe: ResNetRecipe | None = None) -> Path:
    """The folder of the pool of built-in tasks, built first if it is not there."""
    recipe = recipe or ResNetRecipe()
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
    classes = [data.classes for data in sets]
    offsets = [sum(classes[:index]) for index in range(len(sets))]
    scores: dict[str, dict[str, float]] = {"pretrained": {}, "experts": {}}
    processor = make_image_processor(recipe.image_size)
    total = recipe.pretrain_steps + len(sets) * recipe.expert_steps
    with torch.random.fork_rng(devices=[]), tqdm(total=total, unit="step") as bar:
        torch.manual_seed(recipe.seed)
        base = make_resnet(recipe.width, sum(classes))
        bar.set_description("Pretraining")
        pretrain(base, sets, recipe, bar.update)
        save_model(folder / "pretrained", base, processor)
        for data, offset in zip(sets, offsets, strict=True):
            bar.set_description(f"Fine-tuning on {data.name}")
            expert = train_expert(base, data, offset, recipe, bar.update)
            save_model(folder / "experts" / data.name, expert, processor)
            scores["pretrained"][data.name] = _score(base, data, offset)
            scores["experts"][data.name] = _score(expert, data)
    for task in tasks:
        save_task(task, folder / "data")
    return {"tasks": describe_tasks(tasks), "accuracy": scores}


def _score(model: nn.Module, data: ImageTensors, offset: int = 0) -> float:
    """Accuracy of the classes that start at `offset` in the model's head."""
    classes = slice(offset, offset + data.classes)
    return accuracy(lambda pixels: model(pixels).logits[:, classes], data)
