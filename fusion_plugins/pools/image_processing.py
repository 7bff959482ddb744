"""Preprocessed images as compact tensors: bytes where that loses nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# Not square and no multiple of usual sizes, so that resizing and cropping take part.
_PROBE_SIZE = (67, 45)
_ROUNDING = 1e-5  # far below one step of 1/255


class ImageCodec:
    """Encodes images with a pool's processor, decodes them into model inputs.

    What is kept is the resized and cropped image as bytes, if rescaling and normalising
    it afterwards gives what the processor gives; else the processor's own float32.

    Args:
        processor: A transformers image processor, or a torchvision transform.
        device: Where decoded images are wanted.

    Attributes:
        compact: Whether bytes are kept, a quarter of the memory.
    """

    def __init__(self, processor: Callable, device: torch.device | str = "cpu"):
        steps = _steps_of(processor)
        self._full, self._bytes, (scale, mean, std) = steps
        self._scale, self._device = scale, torch.device(device)
        self._mean, self._std = _channels(mean, device), _channels(std, device)
        self.compact = self._bytes is not None and self._is_exact()

    def encode(self, image: Image.Image) -> Tensor:
        """Shape (3, height, width), uint8 or float32."""
        image = image.convert("RGB")
        return self._bytes(image) if self.compact else self._full(image).float()

    def decode(self, stored: Tensor) -> Tensor:
        """Shape (images, 3, height, width), as the processor makes them."""
        if not self.compact:
            return stored
        return (stored.float() * self._scale - self._mean) / self._std

    def _is_exact(self) -> bool:
        pixels = np.random.default_rng(0).integers(0, 256, (*_PROBE_SIZE, 3))
        probe = Image.fromarray(pixels.astype(np.uint8))
        stored = self._bytes(probe)
        if stored.dtype != torch.uint8:
            return False
        decoded = (stored.float() * self._scale - self._mean.cpu()) / self._std.cpu()
        full = self._full(probe)
        close = {"rtol": 0, "atol": _ROUNDING}
        return full.shape == decoded.shape and torch.allclose(full, decoded, **close)


def _channels(values, device) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float32, device=device).view(3, 1, 1)


def _steps_of(processor):
    """Image -> inputs, image -> bytes (or None), and (scale, mean, std) between them."""
    if hasattr(processor, "transforms"):
        return _torchvision_steps(processor)
    if not hasattr(processor, "image_mean"):  # one of the user's own
        return processor, None, (1.0, [0.0] * 3, [1.0] * 3)

    def run(image: Image.Image, **options) -> Tensor:
        inputs = processor(images=[image], return_tensors="pt", **options)
        return inputs["pixel_values"][0]

    def as_bytes(image: Image.Image) -> Tensor:
        return run(image, do_rescale=False, do_normalize=False)

    normalised = processor.do_normalize
    mean = processor.image_mean if normalised else [0.0] * 3
    std = processor.image_std if normalised else [1.0] * 3
    scale = processor.rescale_factor if processor.do_rescale else 1.0
    return run, as_bytes, (scale, mean, std)


def _torchvision_steps(compose):
    """Split ``Compose([..., ToTensor(), Normalize()])`` before its ToTensor."""
    from torchvision.transforms import Normalize, PILToTensor, ToTensor

    steps = list(compose.transforms)
    plain = [0.0] * 3, [1.0] * 3
    at = next((i for i, s in enumerate(steps) if isinstance(s, ToTensor)), None)
    rest = [] if at is None else steps[at + 1 :]
    if at is None or len(rest) > 1 or not all(isinstance(s, Normalize) for s in rest):
        return compose, None, (1.0, *plain)

    def as_bytes(image: Image.Image) -> Tensor:
        for step in steps[:at]:
            image = step(image)
        return PILToTensor()(image)

    mean, std = (rest[0].mean, rest[0].std) if rest else plain
    return compose, as_bytes, (1 / 255, mean, std)
