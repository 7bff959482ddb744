"""OpenCLIP pools: FusionBench's, for any Python, without downloads, pickles on request.

`fusion-plugins convert --help` turns pickles into safetensors.
"""

import importlib
from typing import Any

# Public name -> module that defines it; loaded on first use, because open_clip is slow.
_EXPORTS = {
    "OpenCLIPImageEncoder": "fusion_plugins.modelpool.openclip.encoder",
    "OpenCLIPModelPool": "fusion_plugins.modelpool.openclip.modelpool",
    "convert_checkpoint": "fusion_plugins.modelpool.openclip.convert",
    "load_encoder": "fusion_plugins.modelpool.openclip.checkpoints",
    "load_head": "fusion_plugins.modelpool.openclip.checkpoints",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
