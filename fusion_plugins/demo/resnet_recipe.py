"""What a ResNet pool is made of: sizes, steps, and which tasks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .builtin import builtin_tasks
from .npz_folder import read_npz_folder
from .recipe import BUILTIN_TASKS, DemoInputError, DemoRecipe, TaskData

RESNET_FORMAT = "resnet-1"  # of the pool folder
# Those of the built-in tasks that a small ResNet learns well.
RESNET_TASKS = ("digits", "shapes", "textures", "letters")


@dataclass(frozen=True)
class ResNetRecipe:
    """Everything that decides a pool's content, besides images from files.

    Attributes:
        tasks: Tasks that get an expert.
        seed: Of built-in images, weights and order.
        image_size: Pixels a side.
        width: Channels of the first of three stages; the others have 2 and 4 times more.
        pretrain_images: Per task; experts see all of a task's training images.
        pretrain_steps, pretrain_lr: Of the model that all experts start from, a classifier
            of all tasks' classes together.
        expert_steps, expert_lr: Of every expert. Learning rates are peaks: they rise for
            a tenth of the steps, then fall to zero.
    """

    tasks: tuple[str, ...] = RESNET_TASKS
    seed: int = 0
    image_size: int = 32
    width: int = 16
    batch_size: int = 64
    pretrain_images: int = 150
    pretrain_steps: int = 400
    pretrain_lr: float = 3e-3
    expert_steps: int = 400
    expert_lr: float = 2e-3
    weight_decay: float = 0.01

    def __post_init__(self):
        object.__setattr__(self, "tasks", tuple(self.tasks))
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise DemoInputError(
                f"a pool needs tasks, each once; got {list(self.tasks)}"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            may_be_zero = field.name in ("seed", "weight_decay")
            if field.name != "tasks" and not (value > 0 or may_be_zero and value == 0):
                raise DemoInputError(
                    f"{field.name} must be {'0 or more' if may_be_zero else 'above 0'},"
                    f" got {value}"
                )

    def to_dict(self) -> dict:
        """Plain values, as stored in pool.json."""
        return {**asdict(self), "tasks": list(self.tasks)}

    def hash(self) -> str:
        """12 hexadecimal digits that change when anything in the recipe does."""
        content = {"format_version": RESNET_FORMAT, **self.to_dict()}
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def load_tasks(recipe: ResNetRecipe, data: str | Path | None = None) -> list[TaskData]:
    """The recipe's tasks: from ``data/NAME.npz`` where there is one, else built in.

    Raises:
        DemoInputError: A task is neither, or a file is not as `read_npz_folder` asks.
    """
    files = set()
    if data is not None:
        if not Path(data).is_dir():
            raise DemoInputError(f"{data} is not a folder")
        files = {path.stem for path in Path(data).glob("*.npz")}
    unknown = [name for name in recipe.tasks if name not in {*files, *BUILTIN_TASKS}]
    if unknown:
        raise DemoInputError(
            f"unknown tasks {unknown}; available: {sorted({*files, *BUILTIN_TASKS})}"
        )
    found: Sequence[TaskData] = ()
    real = [name for name in recipe.tasks if name in files]
    if real:
        found = read_npz_folder(data, recipe.image_size, real)
    drawn = tuple(name for name in recipe.tasks if name not in files)
    if drawn:
        sizes = {"seed": recipe.seed, "image_size": recipe.image_size}
        found = [*found, *builtin_tasks(DemoRecipe(tasks=drawn, **sizes))]
    by_name = {task.name: task for task in found}
    return [by_name[name] for name in recipe.tasks]
