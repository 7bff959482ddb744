"""Tasks from a folder of `.npz` files: x_train y_train x_test y_test class_names."""

import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .builtin import resize
from .recipe import DemoInputError, TaskData

KEYS = ("x_train", "y_train", "x_test", "y_test", "class_names")
TEMPLATES = ("a photo of a {}.", "an image of the {}.")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def read_npz_folder(
    folder: str | Path, image_size: int, tasks: Sequence[str] | None = None
) -> list[TaskData]:
    """Every `NAME.npz` of the folder (or those in `tasks`) as a task, sorted by name.

    Images may be grey (N, H, W), (N, H, W, 1) or colour (N, H, W, 3), uint8, of any
    size; they are resized to `image_size` pixels. Labels are integers from 0.

    Raises:
        DemoInputError: No such folder or task, or a file that is not as above.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DemoInputError(f"{folder} is not a folder")
    files = {path.stem: path for path in sorted(folder.glob("*.npz"))}
    if not files:
        raise DemoInputError(f"{folder} has no .npz files, one per task is needed")
    unknown = [name for name in tasks or () if name not in files]
    if unknown:
        raise DemoInputError(
            f"no task {unknown} in {folder}; available: {sorted(files)}"
        )
    return [_read_task(files[name], image_size) for name in tasks or files]


def _read_task(path: Path, image_size: int) -> TaskData:
    if not _NAME.fullmatch(path.stem):
        raise DemoInputError(
            f"{path}: the file name becomes the task's name and may hold only letters,"
            " digits, '-' and '_'"
        )
    arrays = _read_arrays(path)
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
        raise DemoInputError(f"{path}: x_train needs at least 2 images")
    return TaskData(path.stem, **checked, class_names=class_names, templates=TEMPLATES)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise DemoInputError(f"{path}: not a .npz file (those are zip archives)")
    with np.load(path, allow_pickle=False) as file:
        missing = [key for key in KEYS if key not in file.files]
        if missing:
            raise DemoInputError(
                f"{path}: missing {missing}; needed: {list(KEYS)}, found: {file.files}"
            )
        return {key: _read_array(path, file, key) for key in KEYS}


def _read_array(path: Path, file: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    try:
        return file[key]
    except (ValueError, OSError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise DemoInputError(
                f"{path}: {key} holds pickled objects, which are not loaded; save it as"
                " plain numbers or text, for example np.array(['cat', 'dog'])"
            ) from error
        raise DemoInputError(f"{path}: cannot read {key}: {error}") from error


def _class_names(path: Path, names: np.ndarray) -> tuple[str, ...]:
    if names.ndim != 1 or names.dtype.kind != "U" or not len(names):
        raise DemoInputError(
            f"{path}: class_names must be a list of texts, got shape {names.shape} of"
            f" {names.dtype}"
        )
    found = tuple(str(name) for name in names)
    if any(not name.strip() for name in found):
        raise DemoInputError(f"{path}: class_names holds an empty name")
    lower = [" ".join(name.lower().split()) for name in found]
    repeated = sorted({name for name in lower if lower.count(name) > 1})
    if repeated:
        raise DemoInputError(
            f"{path}: class_names repeat: {repeated} (CLIP's tokenizer ignores case)"
        )
    return found


def _check_images(path: Path, key: str, images: np.ndarray) -> None:
    if images.dtype != np.uint8:
        raise DemoInputError(
            f"{path}: {key} must be uint8 (0 to 255), got {images.dtype}"
        )
    colour = images.ndim == 4 and images.shape[3] in (1, 3)
    if not (images.ndim == 3 or colour):
        raise DemoInputError(
            f"{path}: {key} must have shape (N, H, W) or (N, H, W, 3), got"
            f" {images.shape}"
        )
    if 0 in images.shape:
        raise DemoInputError(
            f"{path}: {key} holds no images, its shape is {images.shape}"
        )


def _check_labels(
    path: Path, key: str, labels: np.ndarray, images: int, classes: int
) -> None:
    if labels.dtype.kind not in "iu":
        raise DemoInputError(f"{path}: {key} must be integers, got {labels.dtype}")
    if labels.shape != (images,):
        raise DemoInputError(
            f"{path}: {key} has shape {labels.shape}, expected ({images},), one label"
            " per image"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise DemoInputError(
            f"{path}: {key} runs from {labels.min()} to {labels.max()}, but"
            f" class_names has {classes} names: labels must be 0 to {classes - 1}"
        )
