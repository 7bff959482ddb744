"""Make OpenCLIP models of a CLIP demo pool: the same networks in open_clip's modules."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from filelock import FileLock
from transformers import CLIPModel, CLIPProcessor

from ..common.logging import get_logger
from ..modelpool.openclip.checkpoints import save_head
from .build import POOL_FILE, _check_writable, cache_folder, ensure_pool, is_pool
from .clip import prompt_tokens
from .openclip_export import to_head, to_openclip
from .pools import read_description
from .recipe import DemoInputError, DemoRecipe, TaskData

log = get_logger(__name__)

FAMILY = "openclip"
# Smaller than the CLIP demo, so that a fresh machine builds it within a minute or so.
OPENCLIP_RECIPE = DemoRecipe(
    tasks=("digits", "textures", "letters", "colours"),
    width=96,
    depth=3,
    embedding=96,
    train_images=2000,
    pretrain_steps=300,
    expert_steps=250,
)


def ensure_openclip_pool(
    recipe: DemoRecipe | None = None, root: str | os.PathLike | None = None
) -> Path:
    """The folder of the built-in OpenCLIP pool, built first if it is not there.

    Args:
        recipe: Of the CLIP pool it is made of, which is kept in the cache too (default:
            `OPENCLIP_RECIPE`).
        root: Where (default: the recipe's own folder in the cache).
    """
    recipe = recipe or OPENCLIP_RECIPE
    default = cache_folder() / f"demo-openclip-{recipe.hash()}"
    root = Path(default if root is None else root).absolute()
    return root if is_pool(root) else export_pool(ensure_pool(recipe), root)


def export_pool(source: str | os.PathLike, root: str | os.PathLike) -> Path:
    """Write the OpenCLIP form of a CLIP demo pool; all or nothing.

    Args:
        source: The CLIP pool's folder.
        root: The new folder; must not exist or be empty. A finished pool is kept.

    Raises:
        DemoInputError: `source` is no CLIP demo pool, or `root` holds something else or
            cannot be written.
    """
    source, root = Path(source).absolute(), Path(root).absolute()
    description = read_description(source)
    if not (source / "pretrained" / "preprocessor_config.json").is_file():
        raise DemoInputError(f"{source} is not a pool of HuggingFace CLIP models.")
    _check_writable(root)
    with FileLock(root.with_name(f".{root.name}.lock")):
        if is_pool(root):
            return root
        folder = root.with_name(f".{root.name}.building-{os.getpid()}")
        folder.mkdir()
        try:
            _write(source, folder, description)
            os.replace(folder, root)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    log.info(f"Built the pool {root}")
    return root


def _write(source: Path, folder: Path, description: dict) -> None:
    processor = CLIPProcessor.from_pretrained(source / "pretrained")
    pretrained = CLIPModel.from_pretrained(source / "pretrained")
    to_openclip(pretrained, processor).save_pretrained(folder / "pretrained")
    (folder / "heads").mkdir()
    for name, task in description["tasks"].items():
        expert = CLIPModel.from_pretrained(source / "experts" / name)
        to_openclip(expert, processor).save_pretrained(folder / "experts" / name)
        tokens = prompt_tokens(_prompts(name, task), processor.tokenizer)
        head = to_head(pretrained, tokens)
        save_head(head, folder / "heads" / f"{name}.safetensors")
    shutil.copytree(source / "data", folder / "data")
    text = json.dumps(description | {"family": FAMILY}, indent=2)
    (folder / POOL_FILE).write_text(text + "\n", encoding="utf-8")


def _prompts(name: str, task: dict) -> TaskData:
    """A task of which only its prompts are asked."""
    names, templates = tuple(task["class_names"]), tuple(task["templates"])
    return TaskData(name, *([None] * 4), names, templates)
