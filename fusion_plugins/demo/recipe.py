"""What a pool is made of: the recipe, one task's data, and the error for bad input."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields

import numpy as np

FORMAT_VERSION = 1  # of the pool folder; part of the hash, so a new format rebuilds
BUILTIN_TASKS = ("digits", "shapes", "textures", "letters", "counting", "colours")


class DemoInputError(ValueError):
    """The user's input cannot make a pool; the message says what to do."""


@dataclass(frozen=True)
class TaskData:
    """One classification task.

    Images are uint8 (N, H, W, 3), labels int64 (N,) in [0, classes).
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]
    templates: tuple[str, ...]


@dataclass(frozen=True)
class DemoRecipe:
    """Everything that decides a pool's content. Lengths in pixels, sizes in images.

    Pretraining sees `pretrain_images` of each task's training images under noise of
    standard deviation `pretrain_noise` (1 = the whole range from black to white);
    experts see all training images as they are.
    """

    tasks: tuple[str, ...] = BUILTIN_TASKS
    seed: int = 0
    image_size: int = 32
    patch_size: int = 8
    width: int = 128
    depth: int = 4
    heads: int = 4
    text_width: int = 64
    text_depth: int = 2
    embedding: int = 128
    train_images: int = 3000  # per generated task
    test_images: int = 500  # per built-in task
    pretrain_images: int = 150  # per task
    pretrain_noise: float = 0.3
    pretrain_steps: int = 400
    pretrain_lr: float = 1e-3
    pretrain_weight_decay: float = 0.1
    expert_steps: int = 350
    expert_lr: float = 5e-4
    expert_weight_decay: float = 0.01
    batch_size: int = 64

    def __post_init__(self):
        object.__setattr__(self, "tasks", tuple(self.tasks))
        if not self.tasks:
            raise DemoInputError("a pool needs at least one task")
        if len(set(self.tasks)) != len(self.tasks):
            raise DemoInputError(f"tasks repeat: {list(self.tasks)}")
        for field in fields(self):
            self._check_number(field.name)
        if self.image_size % self.patch_size:
            raise DemoInputError(
                f"image_size {self.image_size} is no multiple of patch_size"
                f" {self.patch_size}"
            )
        if self.width % self.heads or self.text_width % self.heads:
            raise DemoInputError(
                f"width {self.width} and text_width {self.text_width} must be multiples"
                f" of the {self.heads} attention heads"
            )

    def _check_number(self, name: str) -> None:
        value = getattr(self, name)
        may_be_zero = name in {"seed", "pretrain_noise"} or "weight_decay" in name
        if name == "tasks" or (may_be_zero and value == 0):
            return
        if not value > 0:
            at_least = "0 or more" if may_be_zero else "above 0"
            raise DemoInputError(f"{name} must be {at_least}, got {value}")

    def to_dict(self) -> dict:
        """Plain values only, as stored in pool.json."""
        return {**asdict(self), "tasks": list(self.tasks)}

    def hash(self) -> str:
        """12 hexadecimal digits that change when anything in the recipe does."""
        content = {"format_version": FORMAT_VERSION, **self.to_dict()}
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
