"""The demo pool as FusionBench's OpenCLIP model pool and task pool."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from ..modelpool.openclip.modelpool import OpenCLIPModelPool
from ..taskpool.openclip import OpenCLIPTaskPool
from .choosing import choose_tasks, dataset_configs
from .openclip_build import FAMILY, OPENCLIP_RECIPE, ensure_openclip_pool
from .pools import read_description
from .recipe import DemoInputError


def demo_openclip_modelpool(
    root: str | os.PathLike | None = None,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
) -> OpenCLIPModelPool:
    """The pretrained encoder, and one expert and head per task, with all images.

    Args:
        root: A pool's folder; None uses the built-in one, building it on first use.
        seed: Seed of the built-in pool; ignored when `root` is given.
        tasks: Names of the experts wanted; None takes all.

    Raises:
        DemoInputError: `root` is no such pool, or a task is not in it.
    """
    folder = _open(root, seed)
    chosen = choose_tasks(folder, read_description(folder)["tasks"], tasks)
    experts = {name: str(folder / "experts" / name) for name in chosen}
    return OpenCLIPModelPool(
        OmegaConf.create({"_pretrained_": str(folder / "pretrained"), **experts}),
        classification_heads=OmegaConf.create(_heads(folder, chosen)),
        train_datasets=dataset_configs(folder, chosen, "train"),
        val_datasets=dataset_configs(folder, chosen, "val"),
        test_datasets=dataset_configs(folder, chosen, "test"),
    )


def demo_openclip_taskpool(
    root: str | os.PathLike | None = None,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    batch_size: int = 256,
) -> OpenCLIPTaskPool:
    """The same tasks' test images and heads.

    Args:
        root: A pool's folder; None uses the built-in one, building it on first use.
        seed: Seed of the built-in pool; ignored when `root` is given.
        tasks: Names of the tasks wanted; None takes all.
        batch_size: Images per evaluation step.

    Raises:
        DemoInputError: As `demo_openclip_modelpool`, or a batch size below 1.
    """
    if batch_size < 1:
        raise DemoInputError(f"batch_size must be at least 1, got {batch_size}")
    folder = _open(root, seed)
    chosen = choose_tasks(folder, read_description(folder)["tasks"], tasks)
    return OpenCLIPTaskPool(
        dataset_configs(folder, chosen, "test"),
        classification_heads=OmegaConf.create(_heads(folder, chosen)),
        dataloader_kwargs=OmegaConf.create(
            {"batch_size": batch_size, "num_workers": 0}
        ),
        model_name=str(folder / "pretrained"),
    )


def _heads(folder: Path, tasks: Sequence[str]) -> dict[str, str]:
    return {name: str(folder / "heads" / f"{name}.safetensors") for name in tasks}


def _open(root: str | os.PathLike | None, seed: int) -> Path:
    if root is None:
        return ensure_openclip_pool(replace(OPENCLIP_RECIPE, seed=seed))
    if read_description(root).get("family") != FAMILY:
        raise DemoInputError(
            f"{root} is a demo pool of another family. Make OpenCLIP models of it with:"
            f" python -m fusion_plugins.demo build-openclip --from {root} --out NEW"
        )
    return Path(root).absolute()
