"""Build a pool folder: all or nothing, once, also when several processes ask for it."""

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from platformdirs import user_cache_dir
from tqdm import tqdm

from ..common.logging import get_logger
from .builtin import builtin_tasks
from .clip import make_model, make_processor
from .recipe import FORMAT_VERSION, DemoInputError, DemoRecipe, TaskData
from .tensors import to_tensors
from .training import accuracy, pretrain, train_experts

log = get_logger(__name__)

ROOT_VARIABLE = "FUSION_PLUGINS_DEMO_ROOT"
POOL_FILE = "pool.json"


def cache_folder() -> Path:
    """Where built-in pools live: $FUSION_PLUGINS_DEMO_ROOT or the user's cache."""
    return Path(os.environ.get(ROOT_VARIABLE) or user_cache_dir("fusion-plugins"))


def default_root(recipe: DemoRecipe) -> Path:
    """The folder of this recipe's pool; another recipe has another folder."""
    return (cache_folder() / f"demo-{recipe.hash()}").absolute()


def is_pool(root: str | os.PathLike) -> bool:
    """Whether the folder holds a finished pool."""
    return (Path(root) / POOL_FILE).is_file()


def ensure_pool(
    recipe: DemoRecipe | None = None, root: str | os.PathLike | None = None
) -> Path:
    """The folder of the built-in pool, built first if it is not there.

    Args:
        recipe: What to build (default: `DemoRecipe()`).
        root: Where (default: the recipe's own folder in the cache).
    """
    recipe = recipe or DemoRecipe()
    root = Path(root).absolute() if root is not None else default_root(recipe)
    if is_pool(root):
        return root
    return build_pool(recipe, lambda: builtin_tasks(recipe), root)


def build_pool(
    recipe: DemoRecipe,
    load_tasks: Callable[[], Sequence[TaskData]],
    root: str | os.PathLike,
    load_other: Callable[[], Sequence[TaskData]] = tuple,
) -> Path:
    """Train and save a pool at `root`; a pool another process finished is kept.

    Everything is written beside `root` first and renamed at the end, so `root` never
    holds half a pool, whenever the build is killed.

    Args:
        recipe: Sizes, steps, seed. Its `tasks` must be those of `load_tasks`.
        load_tasks: Gives the tasks that get an expert; called only if needed.
        root: The new folder; must not exist or be empty.
        load_other: Gives tasks used only for pretraining.

    Raises:
        DemoInputError: `root` holds something else or cannot be written.
    """
    root = Path(root).absolute()
    _check_writable(root)
    with FileLock(root.with_name(f".{root.name}.lock")):
        if is_pool(root):
            return root
        _check_free(root)
        for stale in root.parent.glob(f".{root.name}.building-*"):
            log.info(f"Removing an unfinished build: {stale}")
            shutil.rmtree(stale)
        folder = root.with_name(f".{root.name}.building-{os.getpid()}")
        folder.mkdir()
        try:
            _write_pool(folder, recipe, list(load_tasks()), list(load_other()))
            os.replace(folder, root)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    log.info(f"Built the pool {root}")
    return root


def _check_free(root: Path) -> None:
    if root.is_dir() and not any(root.iterdir()):
        return
    if root.exists():
        raise DemoInputError(
            f"{root} exists and is not a demo pool; remove it or choose another folder"
        )


def _check_writable(root: Path) -> None:
    if not is_pool(root):
        _check_free(root)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoInputError(f"cannot create {root.parent}: {error}") from error
    if not os.access(root.parent, os.W_OK):
        raise DemoInputError(f"cannot write to {root.parent}")


def _write_pool(
    folder: Path, recipe: DemoRecipe, tasks: list[TaskData], other: list[TaskData]
) -> None:
    start = time.monotonic()
    processor = make_processor(recipe)
    sets = [to_tensors(task, processor.tokenizer) for task in tasks]
    extra = [to_tensors(task, processor.tokenizer) for task in other]
    total = recipe.pretrain_steps + len(sets) * recipe.expert_steps
    with torch.random.fork_rng(devices=[]), tqdm(total=total, unit="step") as bar:
        torch.manual_seed(recipe.seed)
        model = make_model(recipe, processor.tokenizer)
        bar.set_description("Pretraining the demo pool")
        pretrain(model, sets + extra, recipe, bar.update)
        _save(model, processor, folder / "pretrained")
        bar.set_description("Training the experts")
        experts = train_experts(model, sets, recipe, bar.update)
    for name, expert in experts.items():
        _save(expert, processor, folder / "experts" / name)
    result = {
        "pretrained": {data.name: accuracy(model, data) for data in sets},
        "experts": {data.name: accuracy(experts[data.name], data) for data in sets},
    }
    for task in tasks:
        _save_data(task, folder / "data")
    seconds = round(time.monotonic() - start, 1)
    _save_description(folder, recipe, tasks, other, result, seconds)


def _save(model, processor, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _save_data(task: TaskData, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    np.savez_compressed(
        folder / f"{task.name}.npz",
        x_train=task.x_train,
        y_train=task.y_train,
        x_test=task.x_test,
        y_test=task.y_test,
        class_names=np.array(task.class_names),
    )


def _save_description(
    folder: Path,
    recipe: DemoRecipe,
    tasks: Sequence[TaskData],
    other: Sequence[TaskData],
    accuracies: dict,
    seconds: float,
) -> None:
    description = {
        "format_version": FORMAT_VERSION,
        "recipe_hash": recipe.hash(),
        "recipe": recipe.to_dict(),
        "tasks": {
            task.name: {
                "class_names": list(task.class_names),
                "templates": list(task.templates),
                "train_images": len(task.y_train),
                "test_images": len(task.y_test),
            }
            for task in tasks
        },
        "pretraining_only": [task.name for task in other],
        "accuracy": accuracies,
        "build_seconds": seconds,
    }
    text = json.dumps(description, indent=2)
    (folder / POOL_FILE).write_text(text + "\n", encoding="utf-8")
