"""A ResNet pool folder as FusionBench's image classification pool and task pool."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fusion_bench.taskpool.image_classification import ImageClassificationTaskPool
from omegaconf import OmegaConf

from ..modelpool.image_pools import ResNetPool
from ..pools.clip_tasks import register_clip_task
from .datasets import dataset_configs, loader_options, split_configs
from .pool_folder import open_pool
from .recipe import ResNetRecipe
from .resnet_build import ensure_resnet_pool

# FusionBench asks for prompts when a task is registered; nothing here reads them.
_PROMPT = "a picture of {}."


def _open(
    root: str | os.PathLike | None, seed: int, tasks: Sequence[str] | None
) -> tuple[Path, list[str]]:
    """The folder and the wanted tasks, whose class names FusionBench then knows."""
    folder, chosen = open_pool(
        root,
        ResNetRecipe.format,
        lambda: ensure_resnet_pool(ResNetRecipe(seed=seed)),
        tasks,
    )
    for name, task in chosen.items():
        register_clip_task(name, task["class_names"], [_PROMPT])
    return folder, list(chosen)


def demo_resnet_modelpool(
    root: str | os.PathLike | None = None,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
) -> ResNetPool:
    """The pretrained ResNet and one expert per task, with train, val and test images.

    Arguments and errors are those of :func:`~fusion_plugins.demo.demo_modelpool`.
    """
    folder, chosen = _open(root, seed, tasks)
    experts = {name: str(folder / "experts" / name) for name in chosen}
    pretrained = {"config_path": str(folder / "pretrained")}
    return ResNetPool(
        OmegaConf.create({"_pretrained_": pretrained, **experts}),
        type="transformers",
        **split_configs(folder, chosen),
    )


def demo_resnet_taskpool(
    root: str | os.PathLike | None = None,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    batch_size: int = 256,
) -> ImageClassificationTaskPool:
    """FusionBench's own task pool over the same tasks' test images.

    Arguments and errors are those of :func:`~fusion_plugins.demo.demo_taskpool`.
    """
    loader = loader_options(batch_size)
    folder, chosen = _open(root, seed, tasks)
    return ImageClassificationTaskPool(
        dataset_configs(folder, chosen, "test"),
        processor=str(folder / "pretrained"),
        dataloader_kwargs=loader,
    )
