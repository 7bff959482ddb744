"""HuggingFace CLIP pools: the vision tower is merged, zero-shot text heads classify."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from fusion_bench.modelpool import CLIPVisionModelPool
from fusion_bench.models.hf_clip import HFCLIPClassifier
from fusion_bench.tasks.clip_classification import (
    CLIPTemplateFactory,
    get_classnames_and_templates,
)
from fusion_bench.utils.modelscope import resolve_repo_path
from torch import Tensor, nn

from ...merged.heads import ClassificationHead
from ..adapter import PoolAdapter
from ..clip_tasks import register_clip_task
from ..family import family
from ..loading import PRETRAINED, is_instance

_DESCRIPTION = {"classnames", "templates"}


@family("fusion_bench.modelpool.clip_vision.modelpool.CLIPVisionModelPool")
class CLIPAdapter(PoolAdapter):
    """For :class:`fusion_bench.modelpool.CLIPVisionModelPool`.

    `task_info` of an own task: ``{classnames: [...], templates: ["a photo of a {}."]}``;
    it is registered with FusionBench, so that its task pools know the task too.

    Raises:
        ValueError: A task has no class names, or the pool cannot give a full CLIP model.
    """

    def __init__(self, modelpool, task_info=None):
        super().__init__(modelpool, task_info)
        for task, info in self.task_info.items():
            if not isinstance(info, Mapping) or set(info) != _DESCRIPTION:
                raise ValueError(
                    f"tasks.{task} is {info!r}, expected classnames (a list) and templates"
                    " (a list of texts with one {})."
                )
            register_clip_task(task, info["classnames"], info["templates"])
        known = CLIPTemplateFactory.get_available_datasets()
        unknown = [task for task in self.tasks if task not in known]
        if unknown:
            raise ValueError(
                f"FusionBench knows no class names for the task(s) {unknown}. Describe"
                " them: method.tasks={my_task: {classnames: [...], templates: ['a photo"
                " of a {}.']}}."
            )

    outer_layers = ("visual_projection",)

    @classmethod
    def files(cls, modelpool, name: str) -> Path | None:
        config = modelpool._models[name]
        # A subclass may change what is loaded.
        if type(modelpool) is not CLIPVisionModelPool or not isinstance(config, str):
            return None
        platform = modelpool._platform
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
        if self.modelpool._processor is None:
            raise ValueError(
                "The pool has no processor to prepare images with. Set"
                " modelpool.processor to the pretrained model's folder or hub name."
            )
        self._processor = self.modelpool.load_processor()
        images = self._processor.image_processor
        self._scale = images.rescale_factor if images.do_rescale else 1.0
        zero, one = [0.0] * 3, [1.0] * 3
        mean = images.image_mean if images.do_normalize else zero
        std = images.image_std if images.do_normalize else one
        self._mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(std, device=device).view(3, 1, 1)
        clip = self.modelpool.load_clip_model(PRETRAINED).eval().requires_grad_(False)
        clip.vision_model = None  # the merged module takes its place
        self._clip = clip.to(device)

    def encode(self, sample: object) -> Tensor:
        """The resized and cropped image as uint8, shape (3, height, width)."""
        image = sample["image"] if isinstance(sample, dict) else sample[0]
        inputs = self._processor(
            images=[image.convert("RGB")],
            return_tensors="pt",
            do_rescale=False,
            do_normalize=False,
        )
        return inputs["pixel_values"][0].to(torch.uint8)

    def decode(self, stored: Tensor) -> Tensor:
        return (stored.float() * self._scale - self._mean) / self._std

    def features(self, module: nn.Module, inputs: Tensor) -> Tensor:
        """Image embeddings of unit length."""
        embeddings = self._clip.visual_projection(module(inputs)[1])
        return embeddings / embeddings.norm(dim=-1, keepdim=True)

    @torch.no_grad()
    def heads(self) -> dict[str, ClassificationHead]:
        """Text embeddings of the class names, times exp(logit_scale); computed anew.

        They are cheap beside the adaptation, and a cache would have to notice every
        change of a class name, template or text tower.
        """
        classifier = HFCLIPClassifier(self._clip, self._processor)
        scale = self._clip.logit_scale.exp()
        heads = {}
        for task in self.tasks:
            classifier.set_classification_task(*get_classnames_and_templates(task))
            heads[task] = ClassificationHead(classifier.zeroshot_weights * scale)
        self._clip.text_model = None  # not needed any more
        return heads
