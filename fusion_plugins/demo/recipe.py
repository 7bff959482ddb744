"""The recipes of the demo pools; their fields are the options of the build commands."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from ..common import options

BUILTIN_TASKS = ("digits", "shapes", "textures", "letters", "counting", "colours")
# Those of the built-in tasks that a small ResNet learns well.
RESNET_TASKS = BUILTIN_TASKS[:4]


def option(default: Any, meaning: str, zero: bool = False) -> Any:
    """A field of a recipe; `zero` says whether 0 is a value of it."""
    if isinstance(default, tuple):
        checked = options.option(default, _tasks)
    elif isinstance(default, bool):
        checked = options.flag(default)
    elif isinstance(default, int):
        checked = options.integer(default, 0 if zero else 1)
    else:
        checked = options.number(default, open_low=not zero)
    return field(default=default, metadata={**checked.metadata, "help": meaning})


def _tasks(name: str, value: Any) -> tuple[str, ...]:
    tasks = tuple(value)
    if not tasks or len(set(tasks)) != len(tasks):
        raise ValueError(f"a pool needs tasks, each once; got {list(tasks)}")
    return tasks


@dataclass(frozen=True)
class Recipe(options.Options):
    """What decides a pool's content, besides data from files.

    Raises:
        ValueError: An option is of another type or out of range.
    """

    format: ClassVar[int | str]  # of the pool folder; a new one rebuilds

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in pool.json."""
        content = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in content.items()}

    def hash(self) -> str:
        """12 hexadecimal digits that change when anything in the recipe does."""
        content = {"format_version": self.format, **self.to_dict()}
        return options.settings_hash(content, 12)


@dataclass(frozen=True)
class ImageRecipe(Recipe):
    """What the pools of images have in common."""

    tasks: tuple[str, ...] = option(BUILTIN_TASKS, "tasks that get an expert")
    seed: int = option(0, "of drawn images, weights and order", zero=True)
    image_size: int = option(32, "pixels a side")


@dataclass(frozen=True)
class DemoRecipe(ImageRecipe):
    """A pool of small CLIP models.

    Pretraining sees most images as faint negatives under noise; experts see them as they
    are.
    """

    format: ClassVar[int] = 1

    patch_size: int = option(8, "pixels a side of the vision tower's patches")
    width: int = option(128, "of the vision tower, a multiple of heads")
    depth: int = option(4, "layers of the vision tower")
    heads: int = option(4, "attention heads of both towers")
    text_width: int = option(64, "of the text tower, a multiple of heads")
    text_depth: int = option(2, "layers of the text tower")
    embedding: int = option(128, "size of image and text features")
    train_images: int = option(3000, "training images per drawn task")
    test_images: int = option(500, "test images per built-in task")
    pretrain_images: int = option(
        3000, "images per task that pretraining sees; with --data 2000"
    )
    pretrain_noise: float = option(
        0.1,
        "deviation of pretraining's noise (1 = black to white); with --data 0.3",
        True,
    )
    pretrain_negatives: float = option(
        0.9, "share of pretraining's images shown as negatives; with --data 0", True
    )
    pretrain_steps: int = option(400, "steps of pretraining; with --data 1000")
    pretrain_lr: float = option(1e-3, "peak learning rate of pretraining")
    pretrain_weight_decay: float = option(0.1, "of pretraining", zero=True)
    expert_steps: int = option(350, "steps of each expert; with --data 800")
    expert_lr: float = option(5e-4, "peak learning rate of experts")
    expert_weight_decay: float = option(0.01, "of experts", zero=True)
    batch_size: int = option(64, "images per step")

    def __post_init__(self) -> None:
        super().__post_init__()
        # One is held out.
        options.require_integer("train_images", self.train_images, 2)
        options.require_number("pretrain_negatives", self.pretrain_negatives, high=1.0)
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is no multiple of patch_size"
                f" {self.patch_size}"
            )
        if self.width % self.heads or self.text_width % self.heads:
            raise ValueError(
                f"width {self.width} and text_width {self.text_width} must be multiples"
                f" of the {self.heads} attention heads"
            )


# Real images are harder than drawn ones, and may have hundreds of classes.
DATA_DEFAULTS = {
    "pretrain_images": 2000,
    "pretrain_noise": 0.3,
    "pretrain_negatives": 0.0,
    "pretrain_steps": 1000,
    "expert_steps": 800,
}

# Smaller than the CLIP demo, so that a fresh machine builds it within a minute or so.
OPENCLIP_RECIPE = DemoRecipe(
    tasks=("digits", "textures", "letters", "colours"),
    width=96,
    depth=3,
    embedding=96,
    train_images=2000,
    pretrain_images=150,
    pretrain_noise=0.3,
    pretrain_negatives=0.0,
    pretrain_steps=300,
    expert_steps=250,
)


@dataclass(frozen=True)
class ResNetRecipe(ImageRecipe):
    """A pool of small ResNets; the base is a classifier of all tasks' classes."""

    format: ClassVar[str] = "resnet-1"
    train_images: ClassVar[int] = DemoRecipe.train_images
    test_images: ClassVar[int] = DemoRecipe.test_images

    tasks: tuple[str, ...] = option(RESNET_TASKS, "tasks that get an expert")
    width: int = option(
        16, "channels of the first stage; later ones have 2 and 4 times"
    )
    batch_size: int = option(64, "images per step")
    pretrain_images: int = option(150, "images per task that pretraining sees")
    pretrain_steps: int = option(400, "steps of pretraining")
    pretrain_lr: float = option(3e-3, "peak learning rate of pretraining")
    expert_steps: int = option(400, "steps of each expert")
    expert_lr: float = option(2e-3, "peak learning rate of experts")
    weight_decay: float = option(0.01, "of AdamW", zero=True)


@dataclass(frozen=True)
class TextRecipe(Recipe):
    """How every expert of a text pool is fine-tuned."""

    format: ClassVar[str] = "text-1"

    seed: int = option(0, "of new heads, dropout, choice and order", zero=True)
    max_length: int = option(64, "tokens per sentence; longer ones are cut")
    batch_size: int = option(32, "sentences per step")
    epochs: int = option(2, "passes over the training sentences")
    lr: float = option(5e-5, "AdamW's peak learning rate")
    weight_decay: float = option(0.01, "of AdamW", zero=True)
    train_sentences: int = option(3000, "at most this many per task")
    bfloat16: bool = option(False, "train in bfloat16, if the CPU is fast at it", True)
