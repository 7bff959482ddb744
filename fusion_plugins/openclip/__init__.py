"""OpenCLIP pools: FusionBench's, for any Python, without downloads, pickles on request.

`python -m fusion_plugins.openclip convert --help` turns pickles into safetensors.
"""

import importlib

# Public name -> module that defines it; loaded on first use, because open_clip is slow.
_EXPORTS = {
    "OpenCLIPImageEncoder": "fusion_plugins.openclip.encoder",
    "OpenCLIPModelPool": "fusion_plugins.openclip.modelpool",
    "convert_checkpoint": "fusion_plugins.openclip.convert",
    "load_encoder": "fusion_plugins.openclip.checkpoints",
    "load_head": "fusion_plugins.openclip.checkpoints",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
