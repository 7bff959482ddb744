"""The built-in tasks: the real scikit-learn digits and five generated ones."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..common import require
from . import drawing as d
from .recipe import BUILTIN_TASKS, DemoRecipe, ResNetRecipe

AnyRecipe = DemoRecipe | ResNetRecipe


@dataclass(frozen=True)
class TaskData:
    """One classification task.

    Attributes:
        name: Task name.
        x_train, x_test: Images, uint8, shape (N, H, W, 3).
        y_train, y_test: Labels, int64, shape (N,), in [0, classes).
        class_names: In the order of the labels.
        templates: Prompts with a place ``{}`` for a class name.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]
    templates: tuple[str, ...]


_DIGITS = ("zero one two three four five six seven eight nine").split()

# Task -> class names, templates between bars, and what draws one image (none: real data).
_Drawer = Callable[[np.random.Generator, int, int], np.ndarray]
_LETTERS = [f"letter {letter}" for letter in d.LETTERS]
_COLOURED = "a mosaic of mostly {} tiles.|tiles, most of them {}."
_COUNTS = [f"{count} discs" for count in d.COUNTS]
_TASKS: dict[str, tuple[Sequence[str], str, _Drawer | None]] = {
    "digits": (_DIGITS, "a scan of the digit {}.|the digit {}.", None),
    "shapes": (d.SHAPES, "a drawing of a {}.|the shape of a {}.", d.draw_shape),
    "textures": (d.TEXTURES, "a texture of {}.|a pattern of {}.", d.draw_texture),
    "letters": (_LETTERS, "a picture of the {}.|the {} in print.", d.draw_letter),
    "counting": (_COUNTS, "a picture of {}.|a field with {}.", d.draw_count),
    "colours": (d.COLOURS, _COLOURED, d.draw_colour),
}
_NEEDS = {"digits": "sklearn", "letters": "matplotlib"}  # real data; fonts


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Grey (H, W) or colour (H, W, 3) uint8 -> uint8 (size, size, 3)."""
    picture = Image.fromarray(image).convert("RGB")
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def _digits(recipe: AnyRecipe, rng: np.random.Generator) -> list[np.ndarray]:
    """The 1797 real 8x8 scans, shuffled, the first `test_images` (<= 597) for testing."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = rng.permutation(len(data.images))
    scans = (data.images[order] * (255 / 16)).round().astype(np.uint8)
    x = np.stack([resize(scan, recipe.image_size) for scan in scans])
    y = data.target[order].astype(np.int64)
    cut = min(recipe.test_images, 597)
    end = cut + recipe.train_images
    return [x[cut:end], y[cut:end], x[:cut], y[:cut]]


def _drawn(
    recipe: AnyRecipe, rng: np.random.Generator, draw: _Drawer, classes: int
) -> list[np.ndarray]:
    arrays = []
    for count in (recipe.train_images, recipe.test_images):
        y = rng.permutation(np.arange(count) % classes).astype(np.int64)
        x = np.stack([draw(rng, int(label), recipe.image_size) for label in y])
        arrays += [x, y]
    return arrays


def task_seed(seed: int, name: str) -> list[int]:
    """A seed of its own for every task, whatever other tasks the pool has."""
    return [seed, zlib.crc32(name.encode())]


def builtin_tasks(recipe: AnyRecipe) -> list[TaskData]:
    """The recipe's tasks, in its order; the same recipe gives the same bytes.

    Raises:
        ValueError: A task is not built in.
        ModuleNotFoundError: A task needs a package that is not installed.
    """
    unknown = [name for name in recipe.tasks if name not in _TASKS]
    if unknown:
        raise ValueError(
            f"unknown built-in tasks {unknown}; available: {list(BUILTIN_TASKS)}"
        )
    for name, module in _NEEDS.items():
        if name in recipe.tasks:
            require(module, f"The task {name}")
    tasks = []
    for name in recipe.tasks:
        class_names, templates, draw = _TASKS[name]
        rng = np.random.default_rng(task_seed(recipe.seed, name))
        if draw is None:
            arrays = _digits(recipe, rng)
        else:
            arrays = _drawn(recipe, rng, draw, len(class_names))
        train, labels, test, answers = arrays
        texts = tuple(class_names), tuple(templates.split("|"))
        tasks.append(TaskData(name, train, labels, test, answers, *texts))
    return tasks
