"""The image pools as FusionBench's own model pools and task pools."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_bench.modelpool import CLIPVisionModelPool
from fusion_bench.taskpool import CLIPVisionModelTaskPool
from fusion_bench.utils import import_object
from omegaconf import DictConfig, OmegaConf

from ..pools.clip_tasks import register_clip_task
from .datasets import dataset_configs, loader_options, model_configs, split_configs
from .pool_folder import open_pool
from .recipe import OPENCLIP_RECIPE, DemoRecipe, ResNetRecipe

if TYPE_CHECKING:  # each is slow to import
    from fusion_bench.taskpool.image_classification import ImageClassificationTaskPool

    from ..modelpool.image_pools import ResNetPool
    from ..modelpool.openclip.modelpool import OpenCLIPModelPool
    from ..taskpool.openclip import OpenCLIPTaskPool

Root = str | os.PathLike | None
Tasks = Sequence[str] | None


def _clip(root: Root, seed: int, tasks: Tasks) -> tuple[Path, list[str]]:
    """The folder and the wanted tasks, which are then known as zero-shot tasks."""
    from .build import ensure_pool

    recipe = DemoRecipe(seed=seed)
    folder, chosen = open_pool(root, recipe.format, lambda: ensure_pool(recipe), tasks)
    for name, task in chosen.items():
        register_clip_task(name, task["class_names"], task["templates"])
    return folder, list(chosen)


def demo_modelpool(
    root: Root = None, seed: int = 0, tasks: Tasks = None
) -> CLIPVisionModelPool:
    """The pretrained model and one expert per task, with train, val and test images.

    Args:
        root: A pool's folder; None uses the built-in one, building it on first use.
        seed: Seed of the built-in pool; ignored when `root` is given.
        tasks: Names of the experts wanted; None takes all.

    Raises:
        ValueError: `root` is no such pool, or a task is not in it.
    """
    folder, chosen = _clip(root, seed, tasks)
    return CLIPVisionModelPool(
        model_configs(folder, chosen),
        processor=str(folder / "pretrained"),
        **split_configs(folder, chosen),
    )


def demo_taskpool(
    root: Root = None,
    seed: int = 0,
    tasks: Tasks = None,
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
    folder, chosen = _clip(root, seed, tasks)
    return import_object(pool_class)(
        dataset_configs(folder, chosen, "test"),
        processor=str(folder / "pretrained"),
        clip_model=str(folder / "pretrained"),
        dataloader_kwargs=loader,
    )


def _openclip(
    root: Root, seed: int, tasks: Tasks
) -> tuple[Path, list[str], DictConfig]:
    """The folder, the wanted tasks and their heads."""
    from .openclip_build import ensure_openclip_pool

    recipe = replace(OPENCLIP_RECIPE, seed=seed)
    folder, chosen = open_pool(
        root, "openclip", lambda: ensure_openclip_pool(recipe), tasks
    )
    heads = {name: str(folder / "heads" / f"{name}.safetensors") for name in chosen}
    return folder, list(chosen), OmegaConf.create(heads)


def demo_openclip_modelpool(
    root: Root = None, seed: int = 0, tasks: Tasks = None
) -> OpenCLIPModelPool:
    """As :func:`demo_modelpool` (root, seed, tasks), with OpenCLIP's encoders and heads."""
    from ..modelpool.openclip.modelpool import OpenCLIPModelPool

    folder, chosen, heads = _openclip(root, seed, tasks)
    splits: dict[str, Any] = split_configs(folder, chosen)
    return OpenCLIPModelPool(
        model_configs(folder, chosen), classification_heads=heads, **splits
    )


def demo_openclip_taskpool(
    root: Root = None, seed: int = 0, tasks: Tasks = None, batch_size: int = 256
) -> OpenCLIPTaskPool:
    """As :func:`demo_taskpool` (root, seed, tasks, batch_size), for OpenCLIP's encoders."""
    from ..taskpool.openclip import OpenCLIPTaskPool

    loader = loader_options(batch_size)
    folder, chosen, heads = _openclip(root, seed, tasks)
    return OpenCLIPTaskPool(
        dataset_configs(folder, chosen, "test"),
        classification_heads=heads,
        dataloader_kwargs=loader,
        model_name=str(folder / "pretrained"),
    )


def _resnet(root: Root, seed: int, tasks: Tasks) -> tuple[Path, list[str]]:
    """The folder and the wanted tasks, whose class names FusionBench then knows."""
    from .resnet_build import ensure_resnet_pool

    recipe = ResNetRecipe(seed=seed)
    folder, chosen = open_pool(
        root, recipe.format, lambda: ensure_resnet_pool(recipe), tasks
    )
    for name, task in chosen.items():  # nothing here reads the prompt
        register_clip_task(name, task["class_names"], ["a picture of {}."])
    return folder, list(chosen)


def demo_resnet_modelpool(
    root: Root = None, seed: int = 0, tasks: Tasks = None
) -> ResNetPool:
    """As :func:`demo_modelpool` (root, seed, tasks), with ResNets."""
    from ..modelpool.image_pools import ResNetPool

    folder, chosen = _resnet(root, seed, tasks)
    models = model_configs(folder, chosen)
    models["_pretrained_"] = {"config_path": models["_pretrained_"]}
    return ResNetPool(models, type="transformers", **split_configs(folder, chosen))


def demo_resnet_taskpool(
    root: Root = None, seed: int = 0, tasks: Tasks = None, batch_size: int = 256
) -> ImageClassificationTaskPool:
    """As :func:`demo_taskpool` (root, seed, tasks, batch_size): FusionBench's class."""
    from fusion_bench.taskpool.image_classification import ImageClassificationTaskPool

    loader = loader_options(batch_size)
    folder, chosen = _resnet(root, seed, tasks)
    return ImageClassificationTaskPool(
        dataset_configs(folder, chosen, "test"),
        processor=str(folder / "pretrained"),
        dataloader_kwargs=loader,
    )
