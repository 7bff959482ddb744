"""Tasks from a folder of `.npz` files: x_train y_train x_test y_test class_names."""

from __future__ import annotations

import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..common import get_logger
from .builtin import AnyRecipe, TaskData, builtin_tasks, resize

log = get_logger(__name__)

KEYS = ("x_train", "y_train", "x_test", "y_test", "class_names")
TEMPLATES = ("a photo of a {}.", "an image of the {}.")
# What NumPy and zipfile raise for members that are damaged, encrypted or no arrays.
_BUILTIN = (ArithmeticError, EOFError, LookupError, MemoryError, OSError, RuntimeError)
_PARSING = (SyntaxError, ValueError, struct.error, tokenize.TokenError)
_UNREADABLE = (*_BUILTIN, *_PARSING, zipfile.BadZipFile, zlib.error)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def task_names(folder: str | Path) -> list[str]:
    """The tasks of a folder: every ``NAME.npz``, sorted.

    Raises:
        ValueError: There is no such folder, or none in it.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is not a folder")
    names = sorted(path.stem for path in Path(folder).glob("*.npz"))
    if not names:
        raise ValueError(f"{folder} has no .npz files, one per task is needed")
    return names


def read_npz_folder(
    folder: str | Path, image_size: int, tasks: Sequence[str] | None = None
) -> list[TaskData]:
    """Every `NAME.npz` of the folder (or those in `tasks`) as a task, sorted by name.

    Images may be grey (N, H, W), (N, H, W, 1) or colour (N, H, W, 3), uint8, of any
    size; they are resized to `image_size` pixels. Labels are integers from 0.

    Raises:
        ValueError: No such folder or task, or a file that is not as above.
    """
    known = task_names(folder)
    return [
        _read_task(Path(folder, f"{name}.npz"), image_size)
        for name in chosen_tasks(tasks, known, folder)
    ]


def chosen_tasks(
    tasks: Sequence[str] | None, known: Sequence[str], folder: str | Path
) -> Sequence[str]:
    """The wanted tasks of a folder; None takes all that are known."""
    unknown = [name for name in tasks or () if name not in known]
    if unknown:
        raise ValueError(f"no task {unknown} in {folder}; available: {known}")
    return tasks or known


def load_tasks(recipe: AnyRecipe, data: str | Path | None = None) -> list[TaskData]:
    """The recipe's tasks: from ``data/NAME.npz`` where there is one, else built in.

    Raises:
        ValueError: A task is neither, or a file is not as `read_npz_folder` asks.
    """
    files = [] if data is None else task_names(data)
    drawn = tuple(name for name in recipe.tasks if name not in files)
    found = [
        _read_task(Path(str(data), f"{name}.npz"), recipe.image_size)
        for name in files
        if name in recipe.tasks
    ]
    if drawn:
        found += builtin_tasks(replace(recipe, tasks=drawn))
    return sorted(found, key=lambda task: recipe.tasks.index(task.name))


def _read_task(path: Path, image_size: int) -> TaskData:
    if not _NAME.fullmatch(path.stem):
        raise ValueError(
            f"{path}: the file name becomes the task's name and may hold only letters,"
            " digits, '-' and '_'"
        )
    arrays = read_arrays(path)
    class_names = _class_names(path, arrays["class_names"])
    checked = {}
    for split in ("train", "test"):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        _check_images(path, f"x_{split}", x)
        _check_labels(path, f"y_{split}", y, len(x), len(class_names))
        x = x[..., 0] if x.ndim == 4 and x.shape[3] == 1 else x
        checked[f"x_{split}"] = np.stack([resize(image, image_size) for image in x])
        checked[f"y_{split}"] = y.astype(np.int64)
    if len(checked["y_train"]) < 2:
        raise ValueError(f"{path}: x_train needs at least 2 images")
    return TaskData(path.stem, **checked, class_names=class_names, templates=TEMPLATES)


def read_arrays(path: Path, keys: Sequence[str] = KEYS) -> dict[str, np.ndarray]:
    """Members of a file that has all `KEYS`.

    Raises:
        ValueError: One is missing or cannot be read; nothing is unpickled.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not a .npz file (those are zip archives)")
    try:
        file = np.load(path, allow_pickle=False)
    except _UNREADABLE as error:
        raise ValueError(f"{path}: cannot be read ({error}); save it again") from error
    with file:
        missing = [key for key in KEYS if key not in file.files]
        if missing:
            raise ValueError(
                f"{path}: missing {missing}; needed: {list(KEYS)}, found: {file.files}"
            )
        return {key: _read_array(path, file, key) for key in keys}


def _read_array(path: Path, file: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    try:
        array = file[key]
    except _UNREADABLE as error:
        problem = str(error)
        if "allow_pickle" in problem:
            problem = "it holds pickled objects, which are not loaded"
        raise ValueError(
            f"{path}: cannot read {key} ({problem}); save it again with np.savez, as plain"
            " numbers or text such as np.array(['cat', 'dog'])"
        ) from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: {key} is no array; save it with np.savez")
    return array


def _class_names(path: Path, names: np.ndarray) -> tuple[str, ...]:
    if names.ndim != 1 or names.dtype.kind != "U" or not len(names):
        raise ValueError(
            f"{path}: class_names must be a list of texts, got shape {names.shape} of"
            f" {names.dtype}"
        )
    found = tuple(str(name) for name in names)
    lower = [" ".join(name.lower().split()) for name in found]
    if not all(lower):
        raise ValueError(f"{path}: class {lower.index('')} has an empty name")
    repeated = sorted({name for name in lower if lower.count(name) > 1})
    if repeated:  # as in the usual list of ImageNet's classes
        log.warning(
            f"{path}: class names repeat (CLIP ignores case): {repeated}. Zero-shot heads"
            " cannot tell classes of one name apart."
        )
    return found


def _check_images(path: Path, key: str, images: np.ndarray) -> None:
    colour = images.ndim == 4 and images.shape[3] in (1, 3)
    shaped = (images.ndim == 3 or colour) and 0 not in images.shape
    if images.dtype != np.uint8 or not shaped:
        raise ValueError(
            f"{path}: {key} must be uint8 images of shape (N, H, W) or (N, H, W, 3), got"
            f" {images.dtype} of shape {images.shape}"
        )


def _check_labels(
    path: Path, key: str, labels: np.ndarray, images: int, classes: int
) -> None:
    if labels.dtype.kind not in "iu" or labels.shape != (images,):
        raise ValueError(
            f"{path}: {key} must be integers of shape ({images},), one per image, got"
            f" {labels.dtype} of shape {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"{path}: {key} runs from {labels.min()} to {labels.max()}, but"
            f" class_names has {classes} names: labels must be 0 to {classes - 1}"
        )
