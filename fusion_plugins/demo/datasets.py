"""A pool's data sets, as FusionBench reads them: {"image": PIL.Image, "label": int}."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch.utils.data import Dataset

from ..common.identity import fingerprint
from ..common.options import require_integer
from .npz_folder import read_arrays

SPLITS = ("train", "val", "test")
_LOAD_IMAGES = "fusion_plugins.demo.load_dataset"


def train_and_val(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training images and of the tenth of them held out for validation.

    The split depends on `count` alone, so experts and data sets agree on it.
    """
    order = np.random.default_rng(0).permutation(count)
    held_out = max(1, count // 10)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


class DemoDataset(Dataset):
    """Labelled images.

    Args:
        images: uint8, shape (N, H, W, 3).
        labels: Integers, shape (N,).
        class_names: In the order of the labels.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, class_names: list[str]
    ) -> None:
        self.images = images
        self.labels = labels
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Image.Image | int]:
        return {
            "image": Image.fromarray(self.images[index]),
            "label": int(self.labels[index]),
        }

    def contents(self) -> str:
        """A short name for all of it."""
        return fingerprint(self.images, self.labels)


def load_dataset(path: str, task: str, split: str = "test") -> DemoDataset:
    """One split of one task of the pool in folder `path`.

    Args:
        path: The pool's folder (the one with `pool.json`).
        task: A task of that pool.
        split: "train", "val" (a tenth of the training images, unseen in training) or
            "test".

    Raises:
        ValueError: The pool has no such task, or there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; available: {list(SPLITS)}")
    file = Path(path) / "data" / f"{task}.npz"
    if not file.is_file():
        known = sorted(p.stem for p in file.parent.glob("*.npz"))
        raise ValueError(f"no task {task!r} in pool {path}; available: {known}")
    stored = "test" if split == "test" else "train"
    keys = (f"x_{stored}", f"y_{stored}", "class_names")
    x, y, class_names = read_arrays(file, keys).values()
    names = [str(name) for name in class_names]
    if split == "test":
        return DemoDataset(x, y, names)
    chosen = train_and_val(len(y))[SPLITS.index(split)]
    return DemoDataset(x[chosen], y[chosen], names)


# -- as FusionBench's pools take them -----------------------------------------------------


def dataset_configs(
    root: Path, tasks: Sequence[str], split: str, target: str = _LOAD_IMAGES
) -> DictConfig:
    """One split of every task."""
    fixed = {"_target_": target, "path": str(root), "split": split}
    return OmegaConf.create({name: {**fixed, "task": name} for name in tasks})


def split_configs(root: Path, tasks: Sequence[str]) -> dict[str, DictConfig]:
    """A model pool's data sets: all splits of every task."""
    return {
        f"{split}_datasets": dataset_configs(root, tasks, split) for split in SPLITS
    }


def model_configs(root: Path, tasks: Sequence[str]) -> DictConfig:
    """The folders of the base and the experts."""
    experts = {name: str(root / "experts" / name) for name in tasks}
    return OmegaConf.create({"_pretrained_": str(root / "pretrained"), **experts})


def loader_options(batch_size: int) -> DictConfig:
    """Of a task pool's data loader."""
    require_integer("batch_size", batch_size, 1)
    return OmegaConf.create({"batch_size": batch_size, "num_workers": 0})
