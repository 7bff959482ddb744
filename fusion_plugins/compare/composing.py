"""Method configs by name, from the search path of the running `fusion_bench` command."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping

from fusion_bench.utils.hydra_utils import get_default_config_path
from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig


@contextlib.contextmanager
def _hydra() -> Iterator[ConfigLoader]:
    """The running Hydra program's, or one on FusionBench's search path."""
    if GlobalHydra().is_initialized():
        yield GlobalHydra.instance().config_loader()
        return
    with initialize_config_dir(get_default_config_path(), version_base=None):
        yield GlobalHydra.instance().config_loader()


def method_names() -> list[str]:
    """Every config below ``config/method``, upstream's and ours, sorted."""
    with _hydra() as loader:
        return sorted(_names(loader))


def _names(loader: ConfigLoader, folder: str = "") -> Iterator[str]:
    group, searched = f"method/{folder}".rstrip("/"), _search_path()
    for name in loader.get_group_options(group, ObjectType.CONFIG, None, searched):
        yield f"{folder}{name}"
    for name in loader.get_group_options(group, ObjectType.GROUP, None, searched):
        yield from _names(loader, f"{folder}{name}/")


def _search_path() -> list[str]:
    """The folders that the command itself was given; they hold for one config only."""
    folders = HydraConfig.get().searchpath if HydraConfig.initialized() else ()
    return [f"hydra.searchpath={json.dumps(list(folders))}"] if folders else []


def compose_method(name: str, chosen: Mapping[str, str] | None = None) -> DictConfig:
    """A method's config, not resolved; `chosen` puts other methods into its options."""
    options = [f"method@method.{key}={value}" for key, value in (chosen or {}).items()]
    with _hydra():
        config = compose(overrides=[f"+method={name}", *options, *_search_path()])
    method = config["method"]
    if not isinstance(method, DictConfig) or not {"_target_", "name"} & set(method):
        raise ValueError(f"'{name}' is no method: its config names no class to run.")
    return method
