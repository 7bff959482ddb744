"""Build a pool of small CLIP models."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from .builtin import TaskData, builtin_tasks
from .clip import make_model, make_processor, prompt_tokens
from .image_build import save_pool, to_tensors, training
from .pool_folder import build_folder, cached_root
from .recipe import DemoRecipe
from .training import ClipTask, accuracy, pretrain, train_experts


def ensure_pool(
    recipe: DemoRecipe | None = None, root: str | os.PathLike | None = None
) -> Path:
    """The folder of the built-in pool, built first if it is not there.

    Args:
        recipe: What to build (default: `DemoRecipe()`).
        root: Where (default: the recipe's own folder in the cache).
    """
    recipe = recipe or DemoRecipe()
    root = cached_root("demo", recipe) if root is None else root
    return build_pool(recipe, lambda: builtin_tasks(recipe), root)


def build_pool(
    recipe: DemoRecipe,
    load_tasks: Callable[[], Sequence[TaskData]],
    root: str | os.PathLike,
    load_other: Callable[[], Sequence[TaskData]] = tuple,
) -> Path:
    """Train and save a pool at `root`; see `build_folder`.

    Args:
        recipe: Sizes, steps, seed. Its `tasks` must be those of `load_tasks`.
        load_tasks: Gives the tasks that get an expert; called only if needed.
        root: The new folder; must not exist or be empty.
        load_other: Gives tasks used only for pretraining.

    Raises:
        ValueError: `root` holds something else or cannot be written.
    """

    def write(folder: Path) -> dict:
        return _write_pool(folder, recipe, list(load_tasks()), list(load_other()))

    return build_folder(root, recipe, write)


def _write_pool(
    folder: Path, recipe: DemoRecipe, tasks: list[TaskData], other: list[TaskData]
) -> dict:
    processor = make_processor(recipe)

    def tensors(task: TaskData) -> ClipTask:
        tokens = prompt_tokens(task, processor.tokenizer)
        return ClipTask(**vars(to_tensors(task)), tokens=tokens)

    sets, extra = [*map(tensors, tasks)], [*map(tensors, other)]
    with training(recipe) as bar:
        count = min(len(sets), torch.get_num_threads())
        bar.set_description(f"Training the pool, {count} experts at a time")
        base = make_model(recipe, processor.tokenizer)
        pretrain(base, sets + extra, recipe, bar.update)
        experts = train_experts(base, sets, recipe, bar.update)
    scores = {
        "pretrained": {data.name: accuracy(base, data) for data in sets},
        "experts": {data.name: accuracy(experts[data.name], data) for data in sets},
    }
    about = save_pool(folder, tasks, base, experts, processor, scores)
    return about | {"pretraining_only": [task.name for task in other]}
