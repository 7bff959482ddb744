"""An offline pool of real CLIP models: what a fresh machine merges first.

    >>> from fusion_plugins.demo import demo_modelpool, demo_taskpool  # doctest: +SKIP
    >>> merged = AWDAlgorithm().run(demo_modelpool())  # doctest: +SKIP
    >>> report = demo_taskpool().evaluate(merged)  # doctest: +SKIP

`fusion-plugins demo --help` builds and measures it from the command line.
"""

import importlib
from typing import Any

# Public name -> module that defines it; loaded on first use, because torch is slow.
_EXPORTS = {
    "DemoDataset": ".datasets",
    "DemoRecipe": ".recipe",
    "TaskData": ".builtin",
    "build_pool": ".build",
    "builtin_tasks": ".builtin",
    "demo_modelpool": ".pools",
    "demo_taskpool": ".pools",
    "ensure_pool": ".build",
    "load_dataset": ".datasets",
    "read_npz_folder": ".npz_folder",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
