"""HuggingFace CLIP pools: the vision tower is merged, zero-shot text heads classify."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from fusion_bench import BaseModelPool
from fusion_bench.modelpool import CLIPVisionModelPool
from fusion_bench.models.hf_clip import HFCLIPClassifier
from fusion_bench.tasks.clip_classification import get_classnames_and_templates
from fusion_bench.utils.modelscope import resolve_repo_path
from torch import Tensor, nn

from ...common.upstream import clip_platform_of, clip_processor_of, models_of
from ...merged.heads import ClassificationHead
from ...modelpool.folders import accounted
from ..clip_tasks import TextHeads, register_clip_tasks, require_class_names
from ..family import family
from ..image_processing import ImageAdapter, ImageCodec
from ..labels import check_class_order
from ..loading import PRETRAINED, is_instance, label_of


@family("fusion_bench.modelpool.clip_vision.modelpool.CLIPVisionModelPool")
class CLIPAdapter(ImageAdapter):
    """For :class:`fusion_bench.modelpool.CLIPVisionModelPool`.

    `task_info` of an own task: ``{classnames: [...], templates: ["a photo of a {}."]}``;
    it is registered with FusionBench, so that its task pools know the task too.

    Raises:
        ValueError: A task has no class names, or the pool cannot give a full CLIP model.
    """

    def __init__(self, modelpool: BaseModelPool, task_info: Mapping | None = None):
        super().__init__(modelpool, task_info)
        register_clip_tasks(self.task_info)
        require_class_names(self.tasks, "method.tasks")

    outer_layers = ("visual_projection",)

    def check_datasets(self, split: str) -> None:
        super().check_datasets(split)
        for task in self.tasks:
            names, _ = get_classnames_and_templates(task)
            check_class_order(task, self._raw(task, split), names)

    @classmethod
    def files(cls, modelpool: BaseModelPool, name: str) -> Path | None:
        config = models_of(modelpool)[name]
        # A subclass may change what is loaded.
        own = type(modelpool).load_model is not CLIPVisionModelPool.load_model
        if own or not isinstance(config, str):
            return None
        platform = clip_platform_of(modelpool)
        return Path(resolve_repo_path(config, repo_type="model", platform=platform))

    @property
    def outer_module(self) -> nn.Module:
        return self._clip

    def prepare(self, device: torch.device) -> None:
        if is_instance(self.modelpool, PRETRAINED):
            raise ValueError(
                "Zero-shot heads need the text tower of CLIP, but the pool's"
                f" '{PRETRAINED}' is a model in memory. Give its folder or hub name."
            )
        if clip_processor_of(self.modelpool) is None:
            raise ValueError(
                "The pool has no processor to prepare images with. Set"
                " modelpool.processor to the pretrained model's folder or hub name."
            )
        self._processor = self.modelpool.load_processor()
        self._codec = ImageCodec(self._processor.image_processor, device)
        with accounted(label_of(PRETRAINED)):
            clip = self.modelpool.load_clip_model(PRETRAINED)
        clip.vision_model = None  # the merged module takes its place
        self._clip = clip.eval().requires_grad_(False).to(device)
        self._heads = self._text_heads()
        self._clip.text_model = None  # not needed any more

    def features(self, module: nn.Module, inputs: Tensor) -> Tensor:
        """Image embeddings of unit length."""
        embeddings = self._clip.visual_projection(module(inputs)[1])
        return embeddings / embeddings.norm(dim=-1, keepdim=True)

    def heads(self) -> dict[str, nn.Module]:
        """Text embeddings of the class names, times exp(logit_scale)."""
        return self._heads

    @torch.no_grad()
    def _text_heads(self) -> dict[str, nn.Module]:
        weights = TextHeads(HFCLIPClassifier(self._clip, self._processor))
        scale = self._clip.logit_scale.exp()
        known = {t: weights(*get_classnames_and_templates(t)) for t in self.tasks}
        return {t: ClassificationHead(head * scale) for t, head in known.items()}
