"""Which tasks of a pool are wanted, and the configs of their data sets."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from .recipe import DemoInputError

_LOAD_IMAGES = "fusion_plugins.demo.load_dataset"


def choose_tasks(
    root: str | os.PathLike | None, known: Iterable[str], tasks: Sequence[str] | None
) -> list[str]:
    """The wanted tasks of the pool at `root`, which has the `known` ones.

    Args:
        root: For the message.
        known: Names of all tasks.
        tasks: Names, also in one string separated by commas; None takes all.

    Raises:
        DemoInputError: A task is not known, or none is wanted.
    """
    known = list(known)
    if isinstance(tasks, str):
        tasks = [name.strip() for name in tasks.split(",")]
    chosen = known if tasks is None else list(tasks)
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise DemoInputError(
            f"unknown tasks {unknown} for the pool {root}; available: {known}"
        )
    return chosen


def dataset_configs(
    root: Path, tasks: Sequence[str], split: str, target: str = _LOAD_IMAGES
) -> DictConfig:
    """Configs of one split of every task, as FusionBench's pools take them."""
    return OmegaConf.create(
        {
            name: {"_target_": target, "path": str(root), "task": name, "split": split}
            for name in tasks
        }
    )
