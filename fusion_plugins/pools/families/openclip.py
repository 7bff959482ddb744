"""OpenCLIP pools: the image encoder is merged, the pool's own heads classify."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms import Compose, Normalize

from ...merged.heads import ClassificationHead
from ..adapter import PoolAdapter
from ..family import family


@family("fusion_bench.modelpool.openclip_vision.modelpool.OpenCLIPVisionModelPool")
class OpenCLIPAdapter(PoolAdapter):
    """For FusionBench's ``OpenCLIPVisionModelPool`` and ours.

    Raises:
        ValueError: `task_info` describes a task, the pool lacks a head, or only some heads
            normalise what they are given.
    """

    def __init__(self, modelpool, task_info=None):
        super().__init__(modelpool, task_info)
        if self.task_info:
            raise ValueError(
                f"tasks describes {list(self.task_info)}, but an OpenCLIP pool's tasks are"
                " known by its classification_heads. Add the heads there."
            )
        given = modelpool._classification_heads or {}
        missing = [task for task in self.tasks if task not in given]
        if missing:
            raise ValueError(
                f"The pool has no classification head for {missing}, only for"
                f" {list(given)}. List one per task under modelpool.classification_heads."
            )

    @classmethod
    def files(cls, modelpool, name: str) -> Path | None:
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
        self._processor = self.modelpool.test_processor
        self._pixels, self._normalise = split_normalisation(self._processor)
        if self._normalise is not None:
            self._mean, self._std = (
                torch.tensor(values, device=device).view(-1, 1, 1)
                for values in (self._normalise.mean, self._normalise.std)
            )

    def encode(self, sample: object) -> Tensor:
        """The resized and cropped image as uint8, shape (3, height, width).

        Preprocessing that does not end in a division by 255 and a normalisation is kept
        as it comes out, in float32.
        """
        image = sample["image"] if isinstance(sample, dict) else sample[0]
        if self._normalise is None:
            return self._processor(image)
        pixels = self._pixels(image)
        stored = (pixels * 255).round().to(torch.uint8)
        if not torch.equal(stored.float() / 255, pixels):
            raise ValueError(
                f"An image of type {type(image).__name__} has other values than 0..255"
                " after resizing. Datasets must give PIL images."
            )
        return stored

    def decode(self, stored: Tensor) -> Tensor:
        if self._normalise is None:
            return stored
        return (stored.float() / 255 - self._mean) / self._std

    def features(self, module: nn.Module, inputs: Tensor) -> Tensor:
        """Image embeddings, of unit length if the heads take them so."""
        embeddings = module(inputs)
        if not self._heads_normalise:
            return embeddings
        return embeddings / embeddings.norm(dim=-1, keepdim=True)

    def heads(self) -> dict[str, ClassificationHead]:
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


def split_normalisation(processor) -> tuple[Compose | None, Normalize | None]:
    """A transform's steps up to a tensor of k/255, and its last step, the normalisation.

    Returns:
        (None, None) if the transform is not of this form.
    """
    steps = getattr(processor, "transforms", ())
    if len(steps) < 2 or not isinstance(steps[-1], Normalize):
        return None, None
    if type(steps[-2]).__name__ not in ("ToTensor", "MaybeToTensor"):
        return None, None
    return Compose(steps[:-1]), steps[-1]
