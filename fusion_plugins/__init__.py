"""AWD, AdaMerging and Model Tinting as algorithms of FusionBench.

Importing this package costs nothing: the public names load on first use, because Hydra
and packaging tools import it in programs that never merge a model.
"""

import importlib

__version__ = "0.1.0"

# Public name -> module that defines it.
_EXPORTS = {
    "AdaMergingAlgorithm": "fusion_plugins.adamerging.algorithm",
    "AWDAlgorithm": "fusion_plugins.awd.algorithm",
    "CLIPTaskPool": "fusion_plugins.taskpool",
    "GPT2TaskPool": "fusion_plugins.taskpool.gpt2",
    "NYUv2TaskPool": "fusion_plugins.taskpool.nyuv2",
    "OpenCLIPModelPool": "fusion_plugins.modelpool.openclip",
    "OpenCLIPTaskPool": "fusion_plugins.taskpool.openclip",
    "SequenceClassificationTaskPool": "fusion_plugins.taskpool.sequence_classification",
    "StreamingAWDAlgorithm": "fusion_plugins.streaming",
    "TaskVectors": "fusion_plugins.task_vectors",
    "TintedModel": "fusion_plugins.merged.model",
    "TintingAlgorithm": "fusion_plugins.tinting.algorithm",
    "recalibrate": "fusion_plugins.merged.recalibration",
    "register_adapter": "fusion_plugins.pools",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
