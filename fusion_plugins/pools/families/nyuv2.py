"""NYUv2 pools: a shared encoder is merged, each task keeps its decoder."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from ..adapter import PoolAdapter
from ..family import family


class DenseHead(nn.Module):
    """Feature maps -> a task's outputs at every place, channels last.

    At the decoder's own resolution: FusionBench enlarges outputs to the image's size only
    to measure them.

    Args:
        decoder: Maps (samples, features, height, width) to (samples, channels, ...).
    """

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.decoder = decoder

    def forward(self, features: Tensor) -> Tensor:
        """Shape (samples, height, width, channels)."""
        return self.decoder(features).movedim(1, -1)


@family("fusion_bench.modelpool.nyuv2_modelpool.NYUv2ModelPool")
class NYUv2Adapter(PoolAdapter):
    """For :class:`fusion_bench.modelpool.NYUv2ModelPool`.

    Experts are named ``segmentation``, ``depth`` and ``normal``, as their decoders. The
    pool lists datasets such as ``segmentation: {_target_:
    fusion_bench.dataset.nyuv2.NYUv2, root: ..., train: false}``.
    """

    dense = True

    def has_classes(self, task: str) -> bool:
        return task == "segmentation"

    def prepare(self, device: torch.device) -> None:
        self.device = device

    def encode(self, sample: object) -> Tensor:
        """The image, float, shape (3, height, width)."""
        return sample[0]

    def decode(self, stored: Tensor) -> Tensor:
        return stored

    def features(self, module: nn.Module, inputs: Tensor) -> Tensor:
        return module(inputs)

    def heads(self) -> dict[str, DenseHead]:
        """Each expert's own decoder.

        Raises:
            ValueError: An expert has none for its task.
        """
        found = {}
        for task in self.tasks:
            model = self.modelpool.load_model(task, encoder_only=False)
            if task not in model.decoders:
                raise ValueError(
                    f"expert '{task}' has decoders for {list(model.decoders)}, not for"
                    f" '{task}'. Name experts as their tasks and list the decoder under"
                    " `decoders`."
                )
            decoder = deepcopy(model.decoders[task]).eval().requires_grad_(False)
            found[task] = DenseHead(decoder).to(self.device)
        return found
