"""The folder of a demo pool, of any kind: built all or nothing, described, opened."""

from __future__ import annotations

import glob
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from platformdirs import user_cache_dir

from ..common import get_logger
from .recipe import Recipe

log = get_logger(__name__)

ROOT_VARIABLE = "FUSION_PLUGINS_DEMO_ROOT"
POOL_FILE = "pool.json"
# Format of the folder -> its name for modelpool= and taskpool=.
CONFIGS: dict[int | str | None, str] = {
    1: "demo",
    "openclip": "demo-openclip",
    "resnet-1": "demo-resnet",
    "text-1": "demo-text",
}

# -- building ---------------------------------------------------------------------------


def cached_root(name: str, recipe: Recipe) -> Path:
    """The built-in pool's folder, below $FUSION_PLUGINS_DEMO_ROOT or the user's cache."""
    return Path(cache_folder(), f"{name}-{recipe.hash()}").absolute()


def cache_folder() -> str:
    """Where the built-in pools are."""
    return os.environ.get(ROOT_VARIABLE) or user_cache_dir("fusion-plugins")


def is_pool(root: str | os.PathLike) -> bool:
    """Whether the folder holds a finished pool."""
    return (Path(root) / POOL_FILE).is_file()


def output_folder(root: str | os.PathLike) -> Path:
    """The absolute path of a folder to be made.

    Raises:
        ValueError: It holds something, or cannot be made.
    """
    root = _in_writable_folder(root)
    if root.is_symlink():
        raise ValueError(f"{root} is a link; give the new folder itself")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"{root} exists and is not an empty folder; choose another")
    return root


def _in_writable_folder(root: str | os.PathLike) -> Path:
    if not os.fspath(root):
        raise ValueError("the new pool's folder is ''; give its name")
    root = Path(root).absolute()
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot create {root.parent}: {error.strerror}") from error
    if not os.access(root.parent, os.W_OK):
        raise ValueError(f"cannot write to {root.parent}")
    return root


def build_folder(
    root: str | os.PathLike,
    recipe: Recipe,
    write: Callable[[Path], dict],
    resume: str | None = None,
) -> Path:
    """Make a pool; one that is finished, also by another process, is kept.

    `write` fills a folder beside `root` that is renamed at the end, so `root` never holds
    half a pool, whenever the build is killed.

    Args:
        root: The new folder; must not exist or be empty.
        recipe: What is built.
        write: Fills the folder it is given; returns what `pool.json` says about it.
        resume: Names everything that decides the content; what a stopped build of the
            same name left is then given to `write` again. None starts anew.

    Raises:
        ValueError: `root` holds something else or cannot be written.
    """
    if is_pool(root):  # perhaps where nobody may write
        return _same_recipe(Path(root).absolute(), recipe)
    root = _in_writable_folder(root)
    with FileLock(root.with_name(f".{root.name}.lock")):
        if is_pool(root):
            return _same_recipe(root, recipe)
        output_folder(root)
        unfinished = f".{root.name}.building-"
        folder = root.with_name(unfinished + (resume or recipe.hash()))
        try:
            _fill(folder, recipe, write, keep=resume is not None)
            os.replace(folder, root)
        finally:
            if resume is None:
                shutil.rmtree(folder, ignore_errors=True)
        for stale in root.parent.glob(f"{glob.escape(unfinished)}*"):
            shutil.rmtree(stale)
    log.info("Built the pool %s", root)
    return root


def _fill(folder: Path, recipe: Recipe, write: Callable, keep: bool) -> None:
    if folder.exists() and not keep:
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    start = time.monotonic()
    description = {
        "format_version": recipe.format,
        "recipe_hash": recipe.hash(),
        "recipe": recipe.to_dict(),
        **write(folder),
        "build_seconds": round(time.monotonic() - start, 1),
    }
    text = json.dumps(description, indent=2)
    (folder / POOL_FILE).write_text(text + "\n", encoding="utf-8")


def save_model(folder: Path, model: Any, processor: Any) -> None:
    """Write model and processor, or tokenizer; a folder of the name is complete."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    model.save_pretrained(unfinished)
    processor.save_pretrained(unfinished)
    os.replace(unfinished, folder)


def _same_recipe(root: Path, recipe: Recipe) -> Path:
    if read_description(root).get("recipe") != recipe.to_dict():
        raise ValueError(
            f"{root} holds a pool of another recipe; choose another folder"
        )
    return root


# -- opening ----------------------------------------------------------------------------


def pool_format(description: dict) -> int | str | None:
    """Which of `CONFIGS` a pool is, by what its `pool.json` says."""
    return description.get("family", description.get("format_version"))


def read_description(root: str | os.PathLike, wanted: int | str | None = None) -> dict:
    """The pool's `pool.json`: recipe, tasks, accuracies measured when it was built.

    Args:
        root: The pool's folder.
        wanted: A format of `CONFIGS`; None takes any.

    Raises:
        ValueError: The folder is no pool, or of another format.
    """
    command = CONFIGS[1 if wanted is None else wanted].replace("demo", "build")
    advice = f"fusion-plugins demo {command} --help says how to build one"
    if not is_pool(root):
        raise ValueError(f"{root} is not a demo pool (it has no {POOL_FILE}); {advice}")
    file = Path(root) / POOL_FILE
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
        found = pool_format(description)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} is damaged: {error}; build the pool again") from error
    if found not in CONFIGS or wanted not in (None, found):
        raise ValueError(
            f"{root} is a pool of format {found!r}, not {wanted or list(CONFIGS)}; {advice}"
        )
    return description


def open_pool(
    root: str | os.PathLike | None,
    wanted: int | str,
    ensure: Callable[[], Path],
    tasks: Sequence[str] | None,
) -> tuple[Path, dict[str, dict]]:
    """A pool's folder and the wanted tasks, as `pool.json` describes them.

    Args:
        root: The folder; None takes the one that `ensure` gives.
        wanted: Its format.
        ensure: Gives the built-in pool's folder, building it on first use.
        tasks: Names, also in one string separated by commas; None takes all.

    Raises:
        ValueError: There is no such pool, or a task is not in it.
    """
    folder = Path(ensure() if root is None else root).absolute()
    known = read_description(folder, wanted)["tasks"]
    if isinstance(tasks, str):
        tasks = [name.strip() for name in tasks.split(",")]
    if not isinstance(tasks, Sequence | None):
        raise ValueError(f"tasks is {tasks!r}, expected a list of names or null.")
    chosen = list(known if tasks is None else tasks)
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise ValueError(f"unknown tasks {unknown} in {folder}; available: {[*known]}")
    return folder, {name: known[name] for name in chosen}
