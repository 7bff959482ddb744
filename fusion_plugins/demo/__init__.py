"""Offline pools of real models: what a fresh machine merges first.

`fusion-plugins demo --help` builds and measures them from the command line.
"""

from ..common import lazy_exports

# Public name -> module that defines it; loaded on first use, because torch is slow.
__getattr__, __all__ = lazy_exports(
    __name__,
    {
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
    },
)
