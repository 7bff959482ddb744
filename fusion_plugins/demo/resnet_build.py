"""Build a folder of ResNet experts: all or nothing."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from tqdm import tqdm

from ..common.logging import get_logger
from .build import POOL_FILE, cache_folder, is_pool
from .recipe import DemoInputError, TaskData
from .resnet_recipe import RESNET_FORMAT, ResNetRecipe, load_tasks
from .resnet_training import (
    accuracy,
    make_image_processor,
    make_resnet,
    pretrain,
    to_image_tensors,
    train_expert,
)

log = get_logger(__name__)


def ensure_resnet_pool(recipe: ResNetRecipe | None = None) -> Path:
    """The folder of the pool of built-in tasks, built first if it is not there."""
    recipe = recipe or ResNetRecipe()
    root = (cache_folder() / f"demo-resnet-{recipe.hash()}").absolute()
    return root if is_pool(root) else build_resnet_pool(recipe, root)


def build_resnet_pool(
    recipe: ResNetRecipe, root: str | os.PathLike, data: str | Path | None = None
) -> Path:
    """Train and save a pool at `root`; a pool another process finished is kept.

    It is written beside `root` and renamed at the end, so that `root` never holds half a
    pool.

    Args:
        recipe: Sizes, steps, seed, tasks.
        root: The new folder; must not exist or be empty.
        data: Folder of ``NAME.npz`` files; tasks without one are built in.

    Raises:
        DemoInputError: `root` holds something, or a task cannot be read.
    """
    root = Path(root).absolute()
    tasks = load_tasks(recipe, data)
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.with_name(f".{root.name}.lock")):
        if is_pool(root):
            return root
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise DemoInputError(
                f"{root} exists and is not empty; choose another folder"
            )
        for stale in root.parent.glob(f".{root.name}.building-*"):
            shutil.rmtree(stale)
        folder = root.with_name(f".{root.name}.building-{os.getpid()}")
        folder.mkdir()
        try:
            _write_pool(folder, recipe, tasks)
            os.replace(folder, root)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    log.info("Built the ResNet pool %s", root)
    return root


def _write_pool(folder: Path, recipe: ResNetRecipe, tasks: Sequence[TaskData]) -> None:
    start = time.monotonic()
    sets = [to_image_tensors(task) for task in tasks]
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
        _save(base, processor, folder / "pretrained")
        for data, offset in zip(sets, offsets):
            bar.set_description(f"Fine-tuning on {data.name}")
            expert = train_expert(base, data, offset, recipe, bar.update)
            _save(expert, processor, folder / "experts" / data.name)
            scores["pretrained"][data.name] = accuracy(base, data, offset)
            scores["experts"][data.name] = accuracy(expert, data)
    for task in tasks:
        _save_data(task, folder / "data")
    _describe(folder, recipe, tasks, scores, time.monotonic() - start)


def _save(model, processor, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _save_data(task: TaskData, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    arrays = {n: getattr(task, n) for n in ("x_train", "y_train", "x_test", "y_test")}
    names = np.array(task.class_names)
    np.savez_compressed(folder / f"{task.name}.npz", **arrays, class_names=names)


def _describe(
    folder: Path, recipe: ResNetRecipe, tasks, scores, seconds: float
) -> None:
    description = {
        "format_version": RESNET_FORMAT,
        "recipe": recipe.to_dict(),
        "tasks": {
            task.name: {
                "class_names": list(task.class_names),
                "train_images": len(task.y_train),
                "test_images": len(task.y_test),
            }
            for task in tasks
        },
        "accuracy": scores,
        "build_seconds": round(seconds, 1),
    }
    (folder / POOL_FILE).write_text(json.dumps(description, indent=2) + "\n")
