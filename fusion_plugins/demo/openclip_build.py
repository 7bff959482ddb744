"""Make OpenCLIP models of a CLIP demo pool: the same networks in open_clip's modules."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from transformers import CLIPModel, CLIPProcessor

from ..modelpool.openclip.checkpoints import save_head
from .build import ensure_pool
from .builtin import TaskData
from .clip import prompt_tokens
from .openclip_export import to_head, to_openclip
from .pool_folder import build_folder, cached_root, is_pool, read_description
from .recipe import OPENCLIP_RECIPE, DemoRecipe

FAMILY = "openclip"


def ensure_openclip_pool(recipe: DemoRecipe | None = None) -> Path:
    """The folder of the built-in OpenCLIP pool, built first if it is not there.

    Args:
        recipe: Of the CLIP pool it is made of, which is kept in the cache too (default:
            `OPENCLIP_RECIPE`).
    """
    recipe = recipe or OPENCLIP_RECIPE
    root = cached_root("demo-openclip", recipe)
    return root if is_pool(root) else export_pool(ensure_pool(recipe), root)


def export_pool(source: str | os.PathLike, root: str | os.PathLike) -> Path:
    """Write the OpenCLIP form of a CLIP demo pool; see `build_folder`.

    Args:
        source: The CLIP pool's folder.
        root: The new folder; must not exist or be empty.

    Raises:
        ValueError: `source` is no CLIP demo pool, or `root` holds something else or
            cannot be written.
    """
    source = Path(source).absolute()
    description = read_description(source, DemoRecipe.format)

    def write(folder: Path) -> dict:
        _write(source, folder, description["tasks"])
        return description | {"family": FAMILY}

    return build_folder(root, DemoRecipe(**description["recipe"]), write)


def _write(source: Path, folder: Path, tasks: dict[str, dict]) -> None:
    processor = CLIPProcessor.from_pretrained(source / "pretrained")
    pretrained = CLIPModel.from_pretrained(source / "pretrained")
    to_openclip(pretrained, processor).save_pretrained(folder / "pretrained")
    (folder / "heads").mkdir()
    for name, task in tasks.items():
        expert = CLIPModel.from_pretrained(source / "experts" / name)
        to_openclip(expert, processor).save_pretrained(folder / "experts" / name)
        tokens = prompt_tokens(_prompts(name, task), processor.tokenizer)
        head = to_head(pretrained, tokens)
        save_head(head, folder / "heads" / f"{name}.safetensors")
    shutil.copytree(source / "data", folder / "data")


def _prompts(name: str, task: dict) -> TaskData:
    """A task of which only its prompts are asked."""
    names, templates = tuple(task["class_names"]), tuple(task["templates"])
    return TaskData(name, *([None] * 4), names, templates)
