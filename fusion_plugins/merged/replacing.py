"""A model's folder: written all at once in place of an older one, or on the hub."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..task_vectors.files import one_line

INDEX = "tinted.json"
CONFIG = "config.json"
TINTS = "tints"
TRUNK = "trunk"


@contextmanager
def written_beside(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which then takes the place of an older model.

    A kill leaves the older model, or the new one, and never a mixture. Files beside the
    older model that are no part of it stay. A folder that is empty or holds something
    else is written into; ValueError if that is another model.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.is_dir() and not (folder / INDEX).is_file():
        _refuse_other_model(folder / CONFIG)
        yield folder
        return
    with tempfile.TemporaryDirectory(
        dir=folder.parent, prefix=f".{folder.name}-", ignore_cleanup_errors=True
    ) as name:
        new, old = Path(name) / "new", Path(name) / "old"
        new.mkdir()
        yield new
        with _working_folder(folder):
            if folder.exists():
                _copy_others(folder, new)
                folder.rename(old)
            try:
                new.rename(folder)
            except OSError:
                old.rename(folder)
                raise
    for left in _beside(folder):
        shutil.rmtree(left, ignore_errors=True)


def _refuse_other_model(config: Path) -> None:
    if config.is_file() and '"TintedModel"' not in config.read_text(errors="replace"):
        raise ValueError(
            f"{config.parent} holds another model, whose {config.name} would be replaced."
            " Save the tinted model into another folder."
        )


@contextmanager
def _working_folder(folder: Path) -> Iterator[None]:
    """A process that works in a folder goes on in the one that takes its place."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was deleted before
        here = folder.parent
    yield
    if here.is_relative_to(folder) and here.is_dir():
        os.chdir(here)


def _copy_others(older: Path, new: Path) -> None:
    for path in older.iterdir():
        weights = ".safetensors" in path.suffixes or path.match("pytorch_model*")
        if path.name in (TINTS, CONFIG) or weights:
            continue
        if path.name == TRUNK and path.is_dir():
            _copy_others(path, new / TRUNK)
        elif path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True, dirs_exist_ok=True)
        elif not (new / path.name).exists():
            shutil.copy2(path, new / path.name, follow_symlinks=False)


def _beside(folder: Path) -> list[Path]:
    """What killed saves have left."""
    return list(folder.parent.glob(f".{escape(folder.name)}-*"))


def whole_folder(folder: Path) -> Path:
    """A model's folder, or its older state if a save was killed between two renames."""
    left = [path / "old" for path in _beside(folder.resolve())]
    return folder if folder.exists() else next(filter(Path.is_dir, left), folder)


def fetched(source: str | Path) -> Path:
    """A model's folder; what is none but has the form ``user/name`` is downloaded."""
    folder = Path(source)
    # A folder that is being replaced is absent for a moment, its parent is not.
    if folder.is_dir() or folder.parent.is_dir() or str(source).count("/") != 1:
        return folder
    try:
        validate_repo_id(str(source))
    except HFValidationError:
        return folder
    try:
        return Path(huggingface_hub.snapshot_download(str(source)))
    except OSError as error:
        raise ValueError(
            f"{source} is neither a folder nor a model that can be downloaded"
            f" ({one_line(error)[:300]}). Check the path or the name on the hub."
        ) from error


def upload(save: Callable[[str], None], name: str, **options: Any) -> str:
    """Upload what `save` writes into a temporary folder to ``user/name``; its address.

    The repository is made if it does not exist; `private` is for a new one.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(
            f"{name!r} cannot be a model's name on the hub ({one_line(error)}). Give one"
            " such as user/name."
        ) from error
    api = huggingface_hub.HfApi(token=options.pop("token", None))
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        address = api.create_repo(name, exist_ok=True, **options)
        api.upload_folder(repo_id=name, folder_path=folder)
    return str(address)
