"""OpenCLIP pools: the image encoder is merged, the pool's own heads classify."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from fusion_bench import BaseModelPool
from torch import Tensor, nn

from ...common.upstream import heads_of
from ...merged.heads import ClassificationHead
from ..family import family
from ..image_processing import ImageAdapter, ImageCodec


@family("fusion_bench.modelpool.openclip_vision.modelpool.OpenCLIPVisionModelPool")
class OpenCLIPAdapter(ImageAdapter):
    """For FusionBench's ``OpenCLIPVisionModelPool`` and ours.

    Raises:
        ValueError: `task_info` describes a task, the pool lacks a head, or only some heads
            normalise what they are given.
    """

    def __init__(self, modelpool: BaseModelPool, task_info: Mapping | None = None):
        super().__init__(modelpool, task_info)
        if self.task_info:
            raise ValueError(
                f"tasks describes {list(self.task_info)}, but an OpenCLIP pool's tasks are"
                " known by its classification_heads. Add the heads there."
            )
        given = heads_of(modelpool) or {}
        missing = [task for task in self.tasks if task not in given]
        if missing:
            raise ValueError(
                f"The pool has no classification head for {missing}, only for"
                f" {list(given)}. List one per task under modelpool.classification_heads."
            )

    @classmethod
    def files(cls, modelpool: BaseModelPool, name: str) -> Path | None:
        from ...modelpool.openclip.modelpool import OpenCLIPModelPool

        # A subclass may change what is loaded; upstream's pool reads no safetensors.
        if type(modelpool) is not OpenCLIPModelPool:
            return None
        return modelpool.safetensors_of(name)

    def prepare(self, device: torch.device) -> None:
        if not hasattr(self.modelpool, "test_processor"):
            raise ValueError(
                "The pool's pretrained model does not tell how to prepare images: it has no"
                " val_preprocess and no train_preprocess. Set both to open_clip's transforms."
            )
        self.device = device
        self._codec = ImageCodec(self.modelpool.test_processor, device)

    def features(self, module: nn.Module, inputs: Tensor) -> Tensor:
        """Image embeddings, of unit length if the heads take them so."""
        embeddings = module(inputs)
        if not self._heads_normalise:
            return embeddings
        return embeddings / embeddings.norm(dim=-1, keepdim=True)

    def heads(self) -> dict[str, nn.Module]:
        """The pool's heads; their weights hold the temperature already."""
        found = {t: self.modelpool.load_classification_head(t) for t in self.tasks}
        kinds = {task: bool(head.normalize) for task, head in found.items()}
        if len(set(kinds.values())) > 1:
            raise ValueError(
                f"Some classification heads normalise the embeddings, some do not: {kinds}."
                " They must agree."
            )
        self._heads_normalise = all(kinds.values())
        return {
            task: ClassificationHead(head.weight, head.bias).to(self.device)
            for task, head in found.items()
        }
