"""Method configs by name, from the search path of the running `fusion_bench` command."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator, Mapping

from fusion_bench.utils.hydra_utils import get_default_config_path
from hydra import compose, initialize_config_dir
from hydra._internal.config_repository import ConfigRepository
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
        searched = copy.deepcopy(loader.get_search_path())
        for folder in _added_folders():
            searched.append("hydra.searchpath", folder)
        # Asked for each group, the loader itself would copy all its configs.
        return sorted(_names(ConfigRepository(searched)))


def _names(configs: ConfigRepository, folder: str = "") -> Iterator[str]:
    group = f"method/{folder}".rstrip("/")
    for name in configs.get_group_options(group, ObjectType.CONFIG):
        yield f"{folder}{name}"
    for name in configs.get_group_options(group, ObjectType.GROUP):
        yield from _names(configs, f"{folder}{name}/")


def _added_folders() -> list[str]:
    """The folders that the command itself was given; they hold for one config only."""
    return list(HydraConfig.get().searchpath) if HydraConfig.initialized() else []


def compose_method(name: str, chosen: Mapping[str, str] | None = None) -> DictConfig:
    """A method's config, not resolved; `chosen` puts other methods into its options."""
    options = [f"method@method.{key}={value}" for key, value in (chosen or {}).items()]
    if folders := _added_folders():
        options.append(f"hydra.searchpath={json.dumps(folders)}")
    with _hydra():
        config = compose(overrides=[f"+method={name}", *options])
    method = config["method"]
    if not isinstance(method, DictConfig) or not {"_target_", "name"} & set(method):
        raise ValueError(f"'{name}' is no method: its config names no class to run.")
    return method
