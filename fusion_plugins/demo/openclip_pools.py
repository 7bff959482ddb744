"""The demo pool as FusionBench's OpenCLIP model pool and task pool."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ..modelpool.openclip.modelpool import OpenCLIPModelPool
from ..taskpool.openclip import OpenCLIPTaskPool
from .datasets import dataset_configs, loader_options, model_configs, split_configs
from .openclip_build import FAMILY, ensure_openclip_pool
from .pool_folder import open_pool
from .recipe import OPENCLIP_RECIPE


def _open(
    root: str | os.PathLike | None, seed: int, tasks: Sequence[str] | None
) -> tuple[Path, list[str], DictConfig]:
    """The folder, the wanted tasks and their heads."""

    def ensure() -> Path:
        return ensure_openclip_pool(replace(OPENCLIP_RECIPE, seed=seed))

    folder, chosen = open_pool(root, FAMILY, ensure, tasks)
    heads = {name: str(folder / "heads" / f"{name}.safetensors") for name in chosen}
    return folder, list(chosen), OmegaConf.create(heads)


def demo_openclip_modelpool(
    root: str | os.PathLike | None = None,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
) -> OpenCLIPModelPool:
    """The pretrained encoder, and one expert and head per task, with all images.

    Arguments and errors are those of :func:`~fusion_plugins.demo.demo_modelpool`.
    """
    folder, chosen, heads = _open(root, seed, tasks)
    return OpenCLIPModelPool(
        model_configs(folder, chosen),
        classification_heads=heads,
        **split_configs(folder, chosen),
    )


def demo_openclip_taskpool(
    root: str | os.PathLike | None = None,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    batch_size: int = 256,
) -> OpenCLIPTaskPool:
    """The same tasks' test images and heads.

    Arguments and errors are those of :func:`~fusion_plugins.demo.demo_taskpool`.
    """
    loader = loader_options(batch_size)
    folder, chosen, heads = _open(root, seed, tasks)
    return OpenCLIPTaskPool(
        dataset_configs(folder, chosen, "test"),
        classification_heads=heads,
        dataloader_kwargs=loader,
        model_name=str(folder / "pretrained"),
    )
