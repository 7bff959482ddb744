"""FusionBench's image classification pools, importable on Python 3.10 and 3.11 too.

_target_: fusion_plugins.modelpool.image_pools.ResNetPool
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..common import require
from ..common.compat import import_upstream
from ..common.upstream import models_of
from ..task_vectors.files import read_tensors
from . import load_exactly

_MODULE = "fusion_bench.modelpool.{}_for_image_classification"

ConvNextPool = import_upstream(
    _MODULE.format("convnext")
).ConvNextForImageClassificationPool
Dinov2Pool = import_upstream(_MODULE.format("dinov2")).Dinov2ForImageClassificationPool
_ResNetPool: Any = import_upstream(
    _MODULE.format("resnet")
).ResNetForImageClassificationPool


class ResNetPool(_ResNetPool):
    """FusionBench's ResNet pool, whose torchvision models may have a ``checkpoint``.

    FusionBench 0.2.33 builds torchvision models from a name and a number of classes, but
    has no way to give them fine-tuned weights. Here a model's description may say
    ``{model_name: resnet18, num_classes: 10, checkpoint: expert.safetensors}``: a state
    dict, as safetensors or as FusionBench saves it (read as weights only).
    """

    def load_model(
        self, model_name_or_config: Any, *args: Any, **kwargs: Any
    ) -> nn.Module:
        config = model_name_or_config
        if isinstance(config, str) and config in models_of(self):
            config = models_of(self)[config]
        if self.type == "torchvision":
            require("torchvision", "A ResNet pool of type torchvision")
        model = super().load_model(config, *args, **kwargs)
        if self.type != "torchvision" or not isinstance(config, Mapping):
            return model
        if config.get("checkpoint") is not None:
            path = Path(config["checkpoint"])
            label = f"checkpoint {path.name}"
            load_exactly(model, read_tensors(path, label), label, path)
        return model
