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
from .recipe import OPENCLIP_RECIPE, DemoRecipe, ImageRecipe, ResNetRecipe

if TYPE_CHECKING:  # each is slow to import
    from fusion_bench.taskpool.image_classification import ImageClassificationTaskPool

    from ..modelpool.image_pools import ResNetPool
    from ..modelpool.openclip.modelpool import OpenCLIPModelPool
    from ..taskpool.openclip import OpenCLIPTaskPool

Root = str | os.PathLike | None
Tasks = Sequence[str] | None

# Format of the folder -> recipe of the built-in pool, and what builds it.
_BUILT_IN: dict[int | str, tuple[ImageRecipe, str]] = {
    DemoRecipe.format: (DemoRecipe(), "build.ensure_pool"),
    "openclip": (OPENCLIP_RECIPE, "openclip_build.ensure_openclip_pool"),
    ResNetRecipe.format: (ResNetRecipe(), "resnet_build.ensure_resnet_pool"),
}


def _open(
    wanted: int | str, root: Root, seed: int, tasks: Tasks
) -> tuple[Path, list[str]]:
    """The folder and the wanted tasks, whose class names FusionBench then knows."""
    recipe, builder = _BUILT_IN[wanted]
    recipe = replace(recipe, seed=seed)

    def ensure() -> Path:
        return import_object(f"{__package__}.{builder}")(recipe)  # slow to import

    folder, chosen = open_pool(root, wanted, ensure, tasks)
    for name, task in chosen.items():
        if wanted == DemoRecipe.format:
            register_clip_task(name, task["class_names"], task["templates"])
        elif wanted == ResNetRecipe.format:  # which reads no prompt
            register_clip_task(name, task["class_names"], ["a picture of {}."])
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
    folder, chosen = _open(DemoRecipe.format, root, seed, tasks)
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
    folder, chosen = _open(DemoRecipe.format, root, seed, tasks)
    return import_object(pool_class)(
        dataset_configs(folder, chosen, "test"),
        processor=str(folder / "pretrained"),
        clip_model=str(folder / "pretrained"),
        dataloader_kwargs=loader,
    )


def _heads(folder: Path, tasks: Sequence[str]) -> DictConfig:
    heads = {name: str(folder / "heads" / f"{name}.safetensors") for name in tasks}
    return OmegaConf.create(heads)


def demo_openclip_modelpool(
    root: Root = None, seed: int = 0, tasks: Tasks = None
) -> OpenCLIPModelPool:
    """As :func:`demo_modelpool` (root, seed, tasks), with OpenCLIP's encoders and heads."""
    from ..modelpool.openclip.modelpool import OpenCLIPModelPool

    folder, chosen = _open("openclip", root, seed, tasks)
    splits: dict[str, Any] = split_configs(folder, chosen)
    heads = _heads(folder, chosen)
    return OpenCLIPModelPool(
        model_configs(folder, chosen), classification_heads=heads, **splits
    )


def demo_openclip_taskpool(
    root: Root = None, seed: int = 0, tasks: Tasks = None, batch_size: int = 256
) -> OpenCLIPTaskPool:
    """As :func:`demo_taskpool` (root, seed, tasks, batch_size), for OpenCLIP's encoders."""
    from ..taskpool.openclip import OpenCLIPTaskPool

    loader = loader_options(batch_size)
    folder, chosen = _open("openclip", root, seed, tasks)
    return OpenCLIPTaskPool(
        dataset_configs(folder, chosen, "test"),
        classification_heads=_heads(folder, chosen),
        dataloader_kwargs=loader,
        model_name=str(folder / "pretrained"),
    )


def demo_resnet_modelpool(
    root: Root = None, seed: int = 0, tasks: Tasks = None
) -> ResNetPool:
    """As :func:`demo_modelpool` (root, seed, tasks), with ResNets."""
    from ..modelpool.image_pools import ResNetPool

    folder, chosen = _open(ResNetRecipe.format, root, seed, tasks)
    models = model_configs(folder, chosen)
    models["_pretrained_"] = {"config_path": models["_pretrained_"]}
    return ResNetPool(models, type="transformers", **split_configs(folder, chosen))


def demo_resnet_taskpool(
    root: Root = None, seed: int = 0, tasks: Tasks = None, batch_size: int = 256
) -> ImageClassificationTaskPool:
    """As :func:`demo_taskpool` (root, seed, tasks, batch_size): FusionBench's class."""
    from fusion_bench.taskpool.image_classification import ImageClassificationTaskPool

    loader = loader_options(batch_size)
    folder, chosen = _open(ResNetRecipe.format, root, seed, tasks)
    return ImageClassificationTaskPool(
        dataset_configs(folder, chosen, "test"),
        processor=str(folder / "pretrained"),
        dataloader_kwargs=loader,
    )
