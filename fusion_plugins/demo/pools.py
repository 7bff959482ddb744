"""The demo pool as FusionBench's own CLIP model pool and task pool."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fusion_bench.modelpool import CLIPVisionModelPool
from fusion_bench.taskpool import CLIPVisionModelTaskPool
from fusion_bench.utils import import_object

from ..pools.clip_tasks import register_clip_task
from .build import ensure_pool
from .datasets import dataset_configs, loader_options, model_configs, split_configs
from .pool_folder import open_pool
from .recipe import DemoRecipe


def _open(
    root: str | os.PathLike | None, seed: int, tasks: Sequence[str] | None
) -> tuple[Path, list[str]]:
    """The folder and the wanted tasks, which are then known as zero-shot tasks."""
    folder, chosen = open_pool(
        root, DemoRecipe.format, lambda: ensure_pool(DemoRecipe(seed=seed)), tasks
    )
    for name, task in chosen.items():
        register_clip_task(name, task["class_names"], task["templates"])
    return folder, list(chosen)


def demo_modelpool(
    root: str | os.PathLike | None = None,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
) -> CLIPVisionModelPool:
    """The pretrained model and one expert per task, with train, val and test images.

    Args:
        root: A pool's folder; None uses the built-in one, building it on first use.
        seed: Seed of the built-in pool; ignored when `root` is given.
        tasks: Names of the experts wanted; None takes all.

    Raises:
        ValueError: `root` is no such pool, or a task is not in it.
    """
    folder, chosen = _open(root, seed, tasks)
    return CLIPVisionModelPool(
        model_configs(folder, chosen),
        processor=str(folder / "pretrained"),
        **split_configs(folder, chosen),
    )


def demo_taskpool(
    root: str | os.PathLike | None = None,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    batch_size: int = 256,
    pool_class: str = "fusion_plugins.CLIPTaskPool",
) -> CLIPVisionModelTaskPool:
    """The same tasks' test images with the pretrained model's zero-shot heads.

    Args:
        root: A pool's folder; None uses the built-in one, building it on first use.
        seed: Seed of the built-in pool; ignored when `root` is given.
        tasks: Names of the tasks wanted; None takes all.
        batch_size: Images per evaluation step.
        pool_class: Task pool class to build, for example upstream's own
            ``fusion_bench.taskpool.CLIPVisionModelTaskPool``.

    Raises:
        ValueError: As `demo_modelpool`, or a batch size below 1.
    """
    loader = loader_options(batch_size)
    folder, chosen = _open(root, seed, tasks)
    return import_object(pool_class)(
        dataset_configs(folder, chosen, "test"),
        processor=str(folder / "pretrained"),
        clip_model=str(folder / "pretrained"),
        dataloader_kwargs=loader,
    )
