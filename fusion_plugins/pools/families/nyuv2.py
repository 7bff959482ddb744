"""NYUv2 pools: a shared encoder is merged, each task keeps its decoder."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...modelpool import load_exactly
from ...task_vectors.files import read_tensors
from ..family import family
from ..labels import part
from ..loading import load_model
from ..samples import SampledAdapter


class DenseHead(nn.Module):
    """Feature maps -> a task's outputs at every place, channels last.

    At the decoder's own resolution: FusionBench enlarges outputs to the image's size only
    to measure them.
    """

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.decoder = decoder

    def forward(self, features: Tensor) -> Tensor:
        """Shape (samples, height, width, channels)."""
        return self.decoder(features).movedim(1, -1)


@family("fusion_bench.modelpool.nyuv2_modelpool.NYUv2ModelPool")
class NYUv2Adapter(SampledAdapter):
    """For :class:`fusion_bench.modelpool.NYUv2ModelPool`.

    Experts are named ``segmentation``, ``depth`` and ``normal``, as their decoders. The
    pool lists datasets such as ``segmentation: {_target_:
    fusion_bench.dataset.nyuv2.NYUv2, root: ..., train: false}``.
    """

    dense = True

    @classmethod
    def load_model(
        cls, modelpool: Any, name: str, label: str, encoder_only: bool = True
    ) -> nn.Module:
        """As the pool does, but what a checkpoint lacks is an error, not random."""
        model = modelpool.load_model(name, encoder_only=False)
        path = modelpool.get_model_config(name).get("ckpt_path")
        if path is not None:
            tensors = read_tensors(Path(path), label)
            load_exactly(model, tensors, label, path, "decoders.", encoder_only)
        return model.encoder if encoder_only else model

    def has_classes(self, task: str) -> bool:
        return task == "segmentation"

    def prepare(self, device: torch.device) -> None:
        self.device = device

    def look(self, task: str, sample: Any) -> Tensor:
        image = part(sample, ("image",), 0)
        if not isinstance(image, Tensor) or image.ndim != 3:
            raise ValueError(
                f"its image is a {type(image).__name__}, expected a tensor (3, height,"
                " width) as FusionBench's NYUv2 data set gives."
            )
        return image

    def read(self, task: str | None, sample: Any) -> Tensor:
        """The image, float, shape (3, height, width)."""
        return self.look("", sample)

    def decode(self, stored: Tensor) -> Tensor:
        return stored

    def features(self, module: nn.Module, inputs: Tensor) -> Tensor:
        return module(inputs)

    def heads(self) -> dict[str, nn.Module]:
        """Each expert's own decoder."""
        found: dict[str, nn.Module] = {}
        for task in self.tasks:
            model: Any = load_model(self.modelpool, task, encoder_only=False)
            if task not in model.decoders:
                raise ValueError(
                    f"expert '{task}' has decoders for {list(model.decoders)}, not for"
                    f" '{task}'. Name experts as their tasks and list the decoder under"
                    " `decoders`."
                )
            decoder = deepcopy(model.decoders[task]).eval().requires_grad_(False)
            found[task] = DenseHead(decoder).to(self.device)
        return found
