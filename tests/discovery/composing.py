"""Compose jobs as the `fusion_bench` command does, without starting a process."""

import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fusion_bench
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

CONFIG = Path(__file__).resolve().parents[2] / "config"
SHIPPED = sorted(path.relative_to(CONFIG) for path in CONFIG.rglob("*.yaml"))
SITE = Path(fusion_bench.__file__).resolve().parents[1]
UPSTREAM = next(
    folder
    for folder in (SITE / "fusion_bench_config", SITE / "config")
    if folder.is_dir()
)
SELECTABLE = ("method", "modelpool", "taskpool")


def is_choice(path: Path) -> bool:
    """Whether users select this file; those in deeper folders are parts of others."""
    return path.parts[0] in SELECTABLE and len(path.parts) == 2


@functools.cache  # slow to make, and nobody changes one
def compose_job(
    *overrides: str, config_name: str = "fabric_model_fusion"
) -> DictConfig:
    """Compose as the command does: upstream's folder first, ours through the plugin."""
    with initialize_config_dir(str(UPSTREAM), version_base=None):
        return compose(config_name, overrides=list(overrides))


def header_commands(path: Path) -> list[list[str]]:
    """Overrides of the `fusion_bench` commands in a file's comments."""
    text = (CONFIG / path).read_text(encoding="utf-8")
    found = re.findall(r"^#\s+fusion_bench (.+)$", text, flags=re.MULTILINE)
    words = map(shlex.split, found)
    return [[word for word in command if "=" in word] for command in words]


def compose_file(path: Path) -> DictConfig:
    """The node that one file under config/ produces."""
    name = path.with_suffix("").as_posix()
    if path.parent == Path():
        return compose_job(config_name=name)
    group = path.parts[0]
    if group in SELECTABLE:
        chosen = f"{group}={name.removeprefix(group + '/')}"
        # Its own command, where that chooses files and nothing else: it is composed anyway.
        for command in header_commands(path):
            if chosen in command and all(
                word.partition("=")[0] in SELECTABLE for word in command
            ):
                return compose_job(*command)[group]
        return compose_job(chosen)[group]
    return compose_job(f"+{path.parent.as_posix()}@shipped={path.stem}").shipped


def walk(node: Any) -> Iterator[dict]:
    """Every mapping inside nested mappings and lists."""
    if isinstance(node, dict):
        yield node
    if isinstance(node, (dict, list)):
        for child in node.values() if isinstance(node, dict) else node:
            yield from walk(child)


def targets(node: Any) -> list[str]:
    return [mapping["_target_"] for mapping in walk(node) if "_target_" in mapping]
