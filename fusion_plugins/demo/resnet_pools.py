"""A ResNet pool folder as FusionBench's image classification pool and task pool."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from fusion_bench.taskpool.image_classification import ImageClassificationTaskPool
from omegaconf import OmegaConf

from ..modelpool.image_pools import ResNetPool
from ..pools.clip_tasks import register_clip_task
from .build import POOL_FILE, is_pool
from .choosing import choose_tasks, dataset_configs
from .recipe import DemoInputError
from .resnet_build import ensure_resnet_pool
from .resnet_recipe import RESNET_FORMAT, ResNetRecipe

# FusionBench asks for prompts when a task is registered; nothing here reads them.
_PROMPT = "a picture of {}."


def read_resnet_description(root: str | os.PathLike) -> dict:
    """The pool's `pool.json`: recipe, tasks, accuracies measured when it was built.

    Raises:
        DemoInputError: The folder is no pool, or of another kind.
    """
    if not is_pool(root):
        raise DemoInputError(
            f"{root} is not a ResNet pool (it has no {POOL_FILE}). Build one there with:"
            f" python -m fusion_plugins.demo build-resnet --out {root}"
        )
    description = json.loads((Path(root) / POOL_FILE).read_text(encoding="utf-8"))
    version = description.get("format_version")
    if version != RESNET_FORMAT:
        raise DemoInputError(
            f"{root} has format {version!r}, this command reads {RESNET_FORMAT!r}"
        )
    return description


def _open(root, seed: int, tasks) -> tuple[Path, list[str]]:
    """The folder and the wanted tasks, whose class names FusionBench then knows."""
    folder = ensure_resnet_pool(ResNetRecipe(seed=seed)) if root is None else Path(root)
    known = read_resnet_description(folder)["tasks"]
    chosen = choose_tasks(folder, known, tasks)
    for name in chosen:
        register_clip_task(name, known[name]["class_names"], [_PROMPT])
    return folder.absolute(), chosen


def demo_resnet_modelpool(
    root: str | os.PathLike | None = None,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
) -> ResNetPool:
    """The pretrained ResNet and one expert per task, with train, val and test images.

    Args:
        root: A pool's folder; None uses the built-in one, building it on first use.
        seed: Seed of the built-in pool; ignored when `root` is given.
        tasks: Names of the experts wanted; None takes all.

    Raises:
        DemoInputError: `root` is no such pool, or a task is not in it.
    """
    folder, chosen = _open(root, seed, tasks)
    experts = {name: str(folder / "experts" / name) for name in chosen}
    pretrained = {"config_path": str(folder / "pretrained")}
    return ResNetPool(
        OmegaConf.create({"_pretrained_": pretrained, **experts}),
        type="transformers",
        train_datasets=dataset_configs(folder, chosen, "train"),
        val_datasets=dataset_configs(folder, chosen, "val"),
        test_datasets=dataset_configs(folder, chosen, "test"),
    )


def demo_resnet_taskpool(
    root: str | os.PathLike | None = None,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    batch_size: int = 256,
) -> ImageClassificationTaskPool:
    """FusionBench's own task pool over the same tasks' test images.

    Args:
        root: A pool's folder; None uses the built-in one, building it on first use.
        seed: Seed of the built-in pool; ignored when `root` is given.
        tasks: Names of the tasks wanted; None takes all.
        batch_size: Images per evaluation step.

    Raises:
        DemoInputError: As `demo_resnet_modelpool`, or a batch size below 1.
    """
    if batch_size < 1:
        raise DemoInputError(f"batch_size must be at least 1, got {batch_size}")
    folder, chosen = _open(root, seed, tasks)
    return ImageClassificationTaskPool(
        dataset_configs(folder, chosen, "test"),
        processor=str(folder / "pretrained"),
        dataloader_kwargs=OmegaConf.create(
            {"batch_size": batch_size, "num_workers": 0}
        ),
    )
