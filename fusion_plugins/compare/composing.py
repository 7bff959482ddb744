"""Method configs by name, from the search path of the running `fusion_bench` command."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping

from fusion_bench.utils.hydra_utils import get_default_config_path
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig

_GROUP = "method"


@contextlib.contextmanager
def _hydra() -> Iterator[GlobalHydra]:
    """The running Hydra program, or FusionBench's search path where there is none."""
    if GlobalHydra().is_initialized():
        yield GlobalHydra.instance()
        return
    with initialize_config_dir(get_default_config_path(), version_base=None):
        yield GlobalHydra.instance()


def method_names() -> list[str]:
    """Every config below ``config/method``, upstream's and ours, sorted."""
    with _hydra() as hydra:
        return sorted(_names(hydra.config_loader(), "", _search_path()))


def _names(loader, folder: str, overrides: list[str]) -> Iterator[str]:
    group = f"{_GROUP}/{folder}".rstrip("/")
    for name in loader.get_group_options(group, ObjectType.CONFIG, None, overrides):
        yield f"{folder}{name}"
    for name in loader.get_group_options(group, ObjectType.GROUP, None, overrides):
        yield from _names(loader, f"{folder}{name}/", overrides)


def _search_path() -> list[str]:
    """The folders that the command itself was given; they hold for one config only."""
    folders = HydraConfig.get().searchpath if HydraConfig.initialized() else ()
    return [f"hydra.searchpath={json.dumps(list(folders))}"] if folders else []


def compose_method(name: str, chosen: Mapping[str, str] | None = None) -> DictConfig:
    """A method's config, its interpolations not resolved.

    Args:
        name: As `method_names` gives it.
        chosen: Option that holds a method -> name of the method to put there.

    Raises:
        ValueError: The file holds parts of other methods, not a method.
    """
    options = [f"method@method.{key}={value}" for key, value in (chosen or {}).items()]
    with _hydra():
        changes = [f"+{_GROUP}={name}", *options, *_search_path()]
        config = compose(overrides=changes)[_GROUP]
    if not isinstance(config, DictConfig) or not {"_target_", "name"} & set(config):
        raise ValueError(f"'{name}' is no method: its config names no class to run.")
    return config
