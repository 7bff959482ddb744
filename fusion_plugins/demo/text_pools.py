"""A text pool as FusionBench's own model pool, and the task pool that fits it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fusion_bench.modelpool import SequenceClassificationModelPool
from omegaconf import DictConfig, OmegaConf

from ..modelpool.tsv import TsvDataset
from ..pools.model_files import from_pretrained
from ..taskpool.sequence_classification import SequenceClassificationTaskPool
from .datasets import dataset_configs, model_configs
from .pool_folder import open_pool, read_description
from .recipe import TextRecipe

_CLASS = "transformers.AutoModelForSequenceClassification"
_DATA = "fusion_plugins.demo.text_pools.load_text_dataset"


def load_text_dataset(path: str, task: str, split: str = "test") -> list[dict]:
    """Sentences of one task of the pool in folder `path`: dicts of ``text`` and ``label``.

    Args:
        path: The pool's folder.
        task: A task of that pool.
        split: "train" (the experts saw these, or some of them) or "test".

    Raises:
        ValueError: The pool has no such task, or there is no such split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}; available: train, test")
    folder, _ = _open(path, [task])
    return TsvDataset(folder / "data" / task / f"{split}.tsv").rows


def _open(
    root: str | os.PathLike | None, tasks: Sequence[str] | None
) -> tuple[Path, list[str]]:
    folder, chosen = open_pool(root, TextRecipe.format, _no_default, tasks)
    return folder, list(chosen)


def _no_default() -> Path:
    raise ValueError(
        "a text pool has no default folder: set modelpool.root and taskpool.root to the"
        " --out of fusion-plugins demo build-text"
    )


def _tokenizer(root: Path) -> DictConfig:
    length = {"model_max_length": read_description(root)["recipe"]["max_length"]}
    source = from_pretrained("transformers.AutoTokenizer", str(root / "pretrained"))
    return OmegaConf.create(source | length)


def demo_text_modelpool(
    root: str | os.PathLike | None = None, tasks: Sequence[str] | None = None
) -> SequenceClassificationModelPool:
    """The pretrained encoder and one expert per task, with their sentences.

    Args:
        root: Folder made by ``fusion-plugins demo build-text``.
        tasks: Names of the experts wanted; None takes all.

    Raises:
        ValueError: `root` is no text pool, or a task is not in it.
    """
    folder, chosen = _open(root, tasks)
    models = model_configs(folder, chosen)
    return SequenceClassificationModelPool(
        OmegaConf.create({n: from_pretrained(_CLASS, models[n]) for n in models}),
        tokenizer=_tokenizer(folder),
        train_datasets=dataset_configs(folder, chosen, "train", _DATA),
        test_datasets=dataset_configs(folder, chosen, "test", _DATA),
    )


def demo_text_taskpool(
    root: str | os.PathLike | None = None,
    tasks: Sequence[str] | None = None,
    batch_size: int = 64,
) -> SequenceClassificationTaskPool:
    """The same tasks' test sentences, and the experts' heads for plain merged models.

    Args:
        root: As for :func:`demo_text_modelpool`.
        tasks: Names of the tasks wanted; None takes all.
        batch_size: Sentences per evaluation step.

    Raises:
        ValueError: As :func:`demo_text_modelpool`.
    """
    folder, chosen = _open(root, tasks)
    return SequenceClassificationTaskPool(
        dataset_configs(folder, chosen, "test", _DATA),
        tokenizer=_tokenizer(folder),
        heads={name: str(folder / "experts" / name) for name in chosen},
        batch_size=batch_size,
    )
