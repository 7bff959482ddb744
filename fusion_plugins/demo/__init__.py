"""An offline pool of real CLIP models: what a fresh machine merges first.

    >>> from fusion_plugins.demo import demo_modelpool, demo_taskpool  # doctest: +SKIP
    >>> merged = AWDAlgorithm().run(demo_modelpool())  # doctest: +SKIP
    >>> report = demo_taskpool().evaluate(merged)  # doctest: +SKIP

`python -m fusion_plugins.demo --help` builds and measures it from the command line.
"""

import importlib

# Public name -> module that defines it; loaded on first use, because torch is slow.
_EXPORTS = {
    "DemoDataset": "fusion_plugins.demo.datasets",
    "DemoInputError": "fusion_plugins.demo.recipe",
    "DemoRecipe": "fusion_plugins.demo.recipe",
    "TaskData": "fusion_plugins.demo.recipe",
    "build_pool": "fusion_plugins.demo.build",
    "builtin_tasks": "fusion_plugins.demo.builtin",
    "demo_modelpool": "fusion_plugins.demo.pools",
    "demo_taskpool": "fusion_plugins.demo.pools",
    "ensure_pool": "fusion_plugins.demo.build",
    "load_dataset": "fusion_plugins.demo.datasets",
    "read_npz_folder": "fusion_plugins.demo.npz_folder",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
