"""ResNet, ConvNeXt and DINOv2 pools: the trunk is merged, each task keeps its head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fusion_bench import BaseModelPool
from torch import Tensor, nn

from ...common.upstream import models_of, plain_forward_of
from ..clip_tasks import register_clip_tasks
from ..family import family
from ..image_processing import ImageAdapter, ImageCodec
from ..labels import class_counts
from ..loading import PRETRAINED
from ..own_heads import OwnHeadsAdapter, check_head_size

# Pool classes whose models given as a folder are exactly what its files hold.
_KNOWN = {
    "ResNetPool",
    "ResNetForImageClassificationPool",
    "ConvNextForImageClassificationPool",
    "Dinov2ForImageClassificationPool",
}


@family(
    "fusion_bench.modelpool.resnet_for_image_classification.ResNetForImageClassificationPool",
    "fusion_bench.modelpool.convnext_for_image_classification.ConvNextForImageClassificationPool",
    "fusion_bench.modelpool.dinov2_for_image_classification.Dinov2ForImageClassificationPool",
)
class ImageClassificationAdapter(ImageAdapter, OwnHeadsAdapter):
    """For FusionBench's ``*ForImageClassificationPool`` classes.

    Heads are ``classifier`` (transformers) or ``fc`` (torchvision). `task_info` of an own
    task: ``{classnames: [...]}``; it is registered with FusionBench, so that its
    ImageClassificationTaskPool knows the number of classes.

    Raises:
        ValueError: `task_info` is of another form, or an expert's head would be random.
    """

    head_names = ("classifier", "fc")

    def __init__(self, modelpool: BaseModelPool, task_info: Mapping | None = None):
        super().__init__(modelpool, task_info)
        register_clip_tasks(self.task_info, prompts=False)

    def check_datasets(self, split: str) -> None:
        experts = models_of(self.modelpool)
        for task, info in self.task_info.items():
            count = len(info["classnames"])
            check_head_size(task, experts[task], [count], "its class names")
        super().check_datasets(split)
        for task in self.tasks:
            counts = class_counts(self._raw(task, split))
            check_head_size(task, experts[task], counts, "its data set")

    @classmethod
    def files(cls, modelpool: BaseModelPool, name: str) -> Path | None:
        config = models_of(modelpool)[name]
        known = type(modelpool).__name__ in _KNOWN and _is_upstream(modelpool)
        torchvision = getattr(modelpool, "type", None) == "torchvision"
        if not known or torchvision or not isinstance(config, str):
            return None
        return Path(config) if Path(config).is_dir() else None

    @classmethod
    def adopt(cls, module: nn.Module) -> nn.Module:
        """Take off the pool's `forward`, which runs the weights of one fixed object."""
        for name in ("forward", plain_forward_of.name):
            module.__dict__.pop(name, None)
        return module

    @classmethod
    def load_head(cls, modelpool: BaseModelPool, task: str, site: str) -> nn.Module:
        config = models_of(modelpool)[task]
        described = isinstance(config, Mapping) and config.get("dataset_name")
        transformers = getattr(modelpool, "type", "transformers") == "transformers"
        if described and transformers and _is_upstream(modelpool):
            raise ValueError(
                f"expert '{task}' has dataset_name={config['dataset_name']}, for which"
                " FusionBench gives it a new head of random weights. Give the expert as"
                " its folder or hub name alone, so that its trained head is loaded."
            )
        return super().load_head(modelpool, task, site)

    @classmethod
    def save_model(
        cls, modelpool: BaseModelPool, module: nn.Module, path: Path
    ) -> None:
        """As the pool does, but a torchvision model as safetensors in a folder."""
        if not hasattr(module, "save_pretrained"):
            super().save_model(modelpool, module, path)
            return
        saved: Any = module  # a model of transformers
        saved.save_pretrained(path)
        processor = load_processor(modelpool)
        if hasattr(processor, "save_pretrained"):
            processor.save_pretrained(path)

    def prepare(self, device: torch.device) -> None:
        super().prepare(device)
        self._codec = ImageCodec(load_processor(self.modelpool), device)

    def outputs(self, module: nn.Module, inputs: Tensor) -> Tensor:
        outputs = module(inputs)
        return outputs if isinstance(outputs, Tensor) else outputs.logits


def load_processor(modelpool: BaseModelPool) -> Any:
    """The pool's image processor; also where FusionBench itself cannot find it.

    FusionBench 0.2.33 expects ``_pretrained_: {config_path: ...}``, but some of its own
    configs give the folder or hub name alone.
    """
    config = models_of(modelpool)[PRETRAINED]
    if isinstance(config, str) and getattr(modelpool, "type", "") != "torchvision":
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(config)
    return modelpool.load_processor()


def _is_upstream(modelpool: BaseModelPool) -> bool:
    # A subclass may change what is loaded; ours does so for torchvision models alone.
    ours = __name__.partition(".")[0]
    return type(modelpool).__module__.startswith(("fusion_bench.", f"{ours}."))
