"""Offline pools of real models: what a fresh machine merges first.

`fusion-plugins demo --help` builds and measures them from the command line.
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
    "demo_openclip_modelpool": ".pools",
    "demo_openclip_taskpool": ".pools",
    "demo_resnet_modelpool": ".pools",
    "demo_resnet_taskpool": ".pools",
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
