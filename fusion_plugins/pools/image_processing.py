"""Images of any data set: eight bits per colour, preprocessed, kept as compact tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .samples import (
    SampledAdapter,
    Samples,
    check_class_order,
    check_labels,
    class_number,
    label_columns,
    part,
)

IMAGE_COLUMNS = ("image", "img", "pixel_values")
# Not square and no multiple of usual sizes, so that resizing and cropping take part.
_PROBE_SIZE = (67, 45)
_ROUNDING = 1e-5  # far below one step of 1/255

_Step = Callable[[Image.Image], Tensor]


def as_rgb(image: Any) -> Image.Image:
    """An image as three colours of eight bits; transparency is dropped.

    16-bit values are divided by 257, so that white stays white and a picture is the same
    one in both depths; pillow alone cuts them off at 255.

    Raises:
        ValueError: Not an image of pillow, or one whose brightest value is not known.
    """
    if not isinstance(image, Image.Image):
        raise ValueError(
            f"its image is a {type(image).__name__}, expected an image of pillow, not"
            " preprocessed. Cast the column with datasets.Image(), or remove the data"
            " set's own transform."
        )
    deep = image.mode == "I" and image.format == "PNG"  # by older releases of pillow
    if deep or image.mode.startswith("I;16"):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its image has mode {image.mode}, so that its brightest value is not known."
            " Save it with 8 or 16 bits."
        )
    if image.mode in ("P", "PA"):  # else pillow warns of transparent palettes
        image = image.convert("RGBA")
    return image.convert("RGB")


def image_of(sample: Any) -> Any:
    """The image of a raw sample: a dict, or a tuple that starts with it."""
    return part(sample, IMAGE_COLUMNS, 0)


def labelled_images(task: str, raw: Any, classes: Sequence[str] | int) -> Samples:
    """A test set as FusionBench's task pools read it: dicts of `image` and `label`.

    Args:
        task: The task.
        raw: What the user gave.
        classes: Names of the classes, or how many there are.

    Raises:
        ValueError: A sample that was looked at has no image or no label of these classes,
            or the data set has the classes in another order.
    """
    count = classes if isinstance(classes, int) else len(classes)
    if count < 2:
        raise ValueError(
            f"Task '{task}' has {count} class, of which every model is right. Give all"
            " classes that the model tells apart."
        )
    columns, number = label_columns(raw, count), partial(class_number, classes=count)
    if not isinstance(classes, int):
        check_class_order(task, raw, classes)
    samples = Samples(task, raw, partial(_labelled, columns=columns, number=number))
    samples.check()
    check_labels(task, raw, columns, number)
    return samples


def _labelled(
    sample: Any, columns: Sequence[str], number: Callable[[Any], int]
) -> dict[str, Any]:
    label = number(part(sample, columns, 1))
    return {"image": as_rgb(image_of(sample)), "label": label}


class ImageAdapter(SampledAdapter):
    """Pools whose samples are images; :meth:`prepare` makes the codec."""

    _codec: ImageCodec

    def look(self, task: str, sample: Any) -> Image.Image:
        return as_rgb(image_of(sample))

    def read(self, task: str | None, sample: Any) -> Tensor:
        """The preprocessed image, as bytes where that is exact."""
        return self._codec.encode(image_of(sample))

    def decode(self, stored: Tensor) -> Tensor:
        return self._codec.decode(stored)


@dataclass(frozen=True)
class _Scaling:
    """What turns bytes into model inputs, as the processor rounds it."""

    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)
    factor: float = 1.0
    divisor: float = 1.0


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

    def __init__(self, processor: Any, device: torch.device | str = "cpu"):
        self._full, self._bytes, self._scaling = _steps_of(processor)
        self._mean, self._std = (
            torch.tensor(list(values), dtype=torch.float32, device=device).view(3, 1, 1)
            for values in (self._scaling.mean, self._scaling.std)
        )
        if self._bytes is not None and not self._is_exact(self._bytes):
            self._bytes = None
        self.compact = self._bytes is not None

    def encode(self, image: Any) -> Tensor:
        """Shape (3, height, width), uint8 or float32."""
        image = as_rgb(image)
        return self._full(image).float() if self._bytes is None else self._bytes(image)

    def decode(self, stored: Tensor) -> Tensor:
        """Shape (images, 3, height, width), as the processor makes them."""
        return self._scaled(stored) if self.compact else stored

    def resized(self, image: Any) -> Image.Image:
        """The image as bytes once more; only where they are kept (`compact`)."""
        return Image.fromarray(self.encode(image).permute(1, 2, 0).numpy())

    def keeps(self, image: Any) -> bool:
        """Whether the processor makes the same of resized images, of this one too."""
        return self.compact and all(
            torch.equal(self._full(self.resized(one)), self._full(as_rgb(one)))
            for one in (_probe(), image)
        )

    def _is_exact(self, as_bytes: _Step) -> bool:
        probe = _probe()
        stored, full = as_bytes(probe), self._full(probe)
        if stored.dtype != torch.uint8:
            return False
        decoded = self._scaled(stored.to(self._mean.device)).cpu()
        same = full.shape == decoded.shape
        return same and torch.allclose(full, decoded, rtol=0, atol=_ROUNDING)

    def _scaled(self, stored: Tensor) -> Tensor:
        scaled = stored.float() * self._scaling.factor / self._scaling.divisor
        return (scaled - self._mean) / self._std


def _probe() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (*_PROBE_SIZE, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def _steps_of(processor: Any) -> tuple[_Step, _Step | None, _Scaling]:
    """Image -> inputs, image -> bytes (or None), and what is between them."""
    if hasattr(processor, "transforms"):
        return _torchvision_steps(processor)
    if not hasattr(processor, "image_mean"):  # one of the user's own
        return processor, None, _Scaling()

    def run(image: Image.Image, **options: bool) -> Tensor:
        inputs = processor(images=[image], return_tensors="pt", **options)
        return inputs["pixel_values"][0]

    as_bytes = partial(run, do_rescale=False, do_normalize=False)
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    if not processor.do_normalize:
        return run, as_bytes, _Scaling(factor=factor)
    return run, as_bytes, _Scaling(processor.image_mean, processor.image_std, factor)


def _torchvision_steps(compose: Any) -> tuple[_Step, _Step | None, _Scaling]:
    """Split ``Compose([..., ToTensor(), Normalize()])`` before its ToTensor."""
    from torchvision.transforms import Compose, Normalize, PILToTensor, ToTensor

    steps = list(compose.transforms)
    at = next((i for i, s in enumerate(steps) if isinstance(s, ToTensor)), None)
    rest = [] if at is None else steps[at + 1 :]
    if at is None or len(rest) > 1 or not all(isinstance(s, Normalize) for s in rest):
        return compose, None, _Scaling()
    scaling = _Scaling(divisor=255)
    if rest:
        scaling = replace(scaling, mean=rest[0].mean, std=rest[0].std)
    return compose, Compose([*steps[:at], PILToTensor()]), scaling
