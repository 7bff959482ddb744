"""The demo pool as FusionBench's own CLIP model pool and task pool."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from fusion_bench.modelpool import CLIPVisionModelPool
from fusion_bench.taskpool import CLIPVisionModelTaskPool
from fusion_bench.utils import import_object
from omegaconf import OmegaConf

from ..pools.clip_tasks import register_clip_task
from .build import POOL_FILE, ensure_pool, is_pool
from .choosing import choose_tasks, dataset_configs
from .recipe import FORMAT_VERSION, DemoInputError, DemoRecipe


def read_description(root: str | os.PathLike) -> dict:
    """The pool's `pool.json`: recipe, tasks, accuracies measured when it was built.

    Raises:
        DemoInputError: The folder is no pool, or of another format version.
    """
    if not is_pool(root):
        raise DemoInputError(
            f"{root} is not a demo pool (it has no {POOL_FILE}). Build one there with:"
            f" python -m fusion_plugins.demo build --out {root}"
        )
    text = (Path(root) / POOL_FILE).read_text(encoding="utf-8")
    try:
        description = json.loads(text)
    except json.JSONDecodeError as error:
        raise DemoInputError(f"{root}/{POOL_FILE} is damaged: {error}") from error
    version = description.get("format_version")
    if version != FORMAT_VERSION:
        raise DemoInputError(
            f"{root} has format version {version}, this release reads {FORMAT_VERSION};"
            " build it again"
        )
    return description


def _open(root: str | os.PathLike | None, seed: int) -> Path:
    if root is None:
        return ensure_pool(DemoRecipe(seed=seed))
    read_description(root)
    return Path(root).absolute()


def _choose_tasks(root: Path, tasks: Sequence[str] | None) -> list[str]:
    """Check the wanted tasks and register them as zero-shot tasks."""
    known = read_description(root)["tasks"]
    chosen = choose_tasks(root, known, tasks)
    for name in chosen:
        register_clip_task(name, known[name]["class_names"], known[name]["templates"])
    return chosen


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
        DemoInputError: `root` is no pool, or a task is not in it.
    """
    folder = _open(root, seed)
    chosen = _choose_tasks(folder, tasks)
    pretrained = str(folder / "pretrained")
    experts = {name: str(folder / "experts" / name) for name in chosen}
    return CLIPVisionModelPool(
        OmegaConf.create({"_pretrained_": pretrained, **experts}),
        processor=pretrained,
        train_datasets=dataset_configs(folder, chosen, "train"),
        val_datasets=dataset_configs(folder, chosen, "val"),
        test_datasets=dataset_configs(folder, chosen, "test"),
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
        DemoInputError: As `demo_modelpool`, or a batch size below 1.
    """
    if batch_size < 1:
        raise DemoInputError(f"batch_size must be at least 1, got {batch_size}")
    folder = _open(root, seed)
    chosen = _choose_tasks(folder, tasks)
    return import_object(pool_class)(
        dataset_configs(folder, chosen, "test"),
        processor=str(folder / "pretrained"),
        clip_model=str(folder / "pretrained"),
        dataloader_kwargs=OmegaConf.create(
            {"batch_size": batch_size, "num_workers": 0}
        ),
    )
