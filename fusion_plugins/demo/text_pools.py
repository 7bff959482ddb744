"""A text pool as FusionBench's own model pool, and the task pool that fits it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from fusion_bench.modelpool import SequenceClassificationModelPool
from omegaconf import DictConfig, OmegaConf

from ..modelpool.tsv import TsvDataset
from ..taskpool.sequence_classification import SequenceClassificationTaskPool
from .build import POOL_FILE, is_pool
from .choosing import choose_tasks, dataset_configs
from .recipe import DemoInputError
from .text_recipe import TEXT_FORMAT

_LOADER = "transformers.AutoModelForSequenceClassification.from_pretrained"
_TOKENIZER = "transformers.AutoTokenizer.from_pretrained"


def read_text_description(root: str | os.PathLike | None) -> dict:
    """The pool's `pool.json`: recipe, tasks, and the experts' accuracies.

    Raises:
        DemoInputError: The folder is no text pool.
    """
    if root is None:
        raise DemoInputError(
            "a text pool has no default folder: set modelpool.root and taskpool.root to"
            " the --out of python -m fusion_plugins.demo build-text"
        )
    built = is_pool(root)
    found = json.loads((Path(root) / POOL_FILE).read_text()) if built else {}
    if found.get("format_version") != TEXT_FORMAT:
        raise DemoInputError(
            f"{root} is not a text pool of this release. Build one with: python -m"
            " fusion_plugins.demo build-text --help"
        )
    return found


def load_text_dataset(path: str, task: str, split: str = "test") -> list[dict]:
    """Sentences of one task of the pool in folder `path`: dicts of ``text`` and ``label``.

    Args:
        path: The pool's folder.
        task: A task of that pool.
        split: "train" (the experts saw these, or some of them) or "test".

    Raises:
        DemoInputError: The pool has no such task, or there is no such split.
    """
    if split not in ("train", "test"):
        raise DemoInputError(f"unknown split {split!r}; available: train, test")
    _choose(path, [task])
    return TsvDataset(Path(path) / "data" / task / f"{split}.tsv").rows


def _choose(root: str | os.PathLike | None, tasks: Sequence[str] | None) -> list[str]:
    return choose_tasks(root, read_text_description(root)["tasks"], tasks)


def _datasets(root: Path, tasks: Sequence[str], split: str) -> DictConfig:
    target = "fusion_plugins.demo.text_pools.load_text_dataset"
    return dataset_configs(root, tasks, split, target)


def _pretrained(target: str, folder: Path, **options) -> dict:
    path = {"pretrained_model_name_or_path": str(folder)}
    return {"_target_": target} | path | options


def demo_text_modelpool(
    root: str | os.PathLike | None = None, tasks: Sequence[str] | None = None
) -> SequenceClassificationModelPool:
    """The pretrained encoder and one expert per task, with their sentences.

    Args:
        root: Folder made by ``python -m fusion_plugins.demo build-text``.
        tasks: Names of the experts wanted; None takes all.

    Raises:
        DemoInputError: `root` is no text pool, or a task is not in it.
    """
    chosen = _choose(root, tasks)
    folder = Path(root).absolute()
    models = {"_pretrained_": _pretrained(_LOADER, folder / "pretrained")}
    models |= {n: _pretrained(_LOADER, folder / "experts" / n) for n in chosen}
    return SequenceClassificationModelPool(
        OmegaConf.create(models),
        tokenizer=OmegaConf.create(_tokenizer(folder)),
        train_datasets=_datasets(folder, chosen, "train"),
        test_datasets=_datasets(folder, chosen, "test"),
    )


def _tokenizer(root: Path) -> dict:
    length = read_text_description(root)["recipe"]["max_length"]
    return _pretrained(_TOKENIZER, root / "pretrained", model_max_length=length)


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
        DemoInputError: As :func:`demo_text_modelpool`.
    """
    chosen = _choose(root, tasks)
    folder = Path(root).absolute()
    return SequenceClassificationTaskPool(
        _datasets(folder, chosen, "test"),
        tokenizer=OmegaConf.create(_tokenizer(folder)),
        heads={name: str(folder / "experts" / name) for name in chosen},
        batch_size=batch_size,
    )
