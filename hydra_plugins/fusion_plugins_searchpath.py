"""Let the `fusion_bench` command find the configs of fusion-plugins.

Hydra imports this module in every Hydra program of the environment, so it imports
nothing heavy and does nothing unless FusionBench is the program that is running.
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


def _first_folder(*candidates: Path) -> Path | None:
    return next((path for path in candidates if path.is_dir()), None)


def _own_configs() -> Path | None:
    spec = importlib.util.find_spec("fusion_plugins")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).resolve().parent
    # A wheel carries the configs inside the package, a checkout beside it.
    return _first_folder(package / "config", package.parent / "config")


def _upstream_configs() -> Path | None:
    origin = getattr(sys.modules["fusion_bench"], "__file__", None)
    if origin is None:
        return None
    root = Path(origin).resolve().parent.parent
    return _first_folder(root / "fusion_bench_config", root / "config")


def _print_for_people() -> None:
    """Let the `fusion_bench` command run our program where something of ours takes part."""
    for name in ("fusion_bench.scripts.cli", "__main__"):
        command = sys.modules.get(name)
        main = getattr(command, "main", None)
        if hasattr(command, "_hydra_main") and not isinstance(main, partial):
            # FusionBench asks for whole tracebacks itself; the user may as well.
            asked = os.environ.get("HYDRA_FULL_ERROR", "0")
            command.main = partial(_main, main, asked)


def _main(main: Callable[[Any], Any], full_errors: str, config: Any) -> Any:
    parts = (config, *map(config.get, ("method", "modelpool", "taskpool")))
    targets = [str(part.get("_target_")) for part in parts if part]
    if any(target.startswith("fusion_plugins.") for target in targets):
        os.environ["HYDRA_FULL_ERROR"] = full_errors
        config = importlib.import_module("fusion_plugins.cli.merging").prepared(config)
    return main(config)


class FusionPluginsSearchPath(SearchPathPlugin):
    """Append our config folder, and upstream's own.

    FusionBench takes `./config` or `./fusion_bench_config` of the current folder as its
    only config folder when one exists, and then finds none of its own configs. Appending
    upstream's folder repairs that. Appended folders lose to earlier ones on equal names.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if "fusion_bench" not in sys.modules:
            return
        importlib.import_module("fusion_plugins")  # lends FusionBench names it needs
        _print_for_people()
        # Hydra keeps the program's own folder without its scheme.
        paths = [str(e.path).removeprefix("file://") for e in search_path.get_path()]
        known = {str(Path(path).resolve()) for path in paths}
        for provider, folder in (
            ("fusion_bench", _upstream_configs()),
            ("fusion-plugins", _own_configs()),
        ):
            if folder is not None and str(folder) not in known:
                search_path.append(provider=provider, path=f"file://{folder}")
