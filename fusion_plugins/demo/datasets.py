"""A pool's data sets, as FusionBench reads them: {"image": PIL.Image, "label": int}."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from .recipe import DemoInputError

SPLITS = ("train", "val", "test")


def train_and_val(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training images and of the tenth of them held out for validation.

    The split depends on `count` alone, so experts and data sets agree on it.
    """
    order = np.random.default_rng(0).permutation(count)
    held_out = max(1, count // 10)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


class DemoDataset(Dataset):
    """Labelled images: uint8 (N, H, W, 3) and integers (N,)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, class_names: list[str]):
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


def load_dataset(path: str, task: str, split: str = "test") -> DemoDataset:
    """One split of one task of the pool in folder `path`.

    Args:
        path: The pool's folder (the one with `pool.json`).
        task: A task of that pool.
        split: "train", "val" (a tenth of the training images, unseen in training) or
            "test".

    Raises:
        DemoInputError: The pool has no such task, or there is no such split.
    """
    if split not in SPLITS:
        raise DemoInputError(f"unknown split {split!r}; available: {list(SPLITS)}")
    file = Path(path) / "data" / f"{task}.npz"
    if not file.is_file():
        known = sorted(p.stem for p in file.parent.glob("*.npz"))
        raise DemoInputError(f"no task {task!r} in pool {path}; available: {known}")
    with np.load(file, allow_pickle=False) as arrays:
        names = [str(name) for name in arrays["class_names"]]
        if split == "test":
            return DemoDataset(arrays["x_test"], arrays["y_test"], names)
        x, y = arrays["x_train"], arrays["y_train"]
    chosen = train_and_val(len(y))[SPLITS.index(split)]
    return DemoDataset(x[chosen], y[chosen], names)
