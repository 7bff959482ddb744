"""Images of any data set: eight bits per colour, preprocessed, kept as compact tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..common.identity import fingerprint
from .kept_images import EncodedImages, chosen_folder
from .labels import (
    check_class_order,
    check_labels,
    class_number,
    label_columns,
    part,
)
from .samples import SampledAdapter, Samples

IMAGE_COLUMNS = ("image", "img", "pixel_values")
# Not square and no multiple of usual sizes, so that resizing and cropping take part.
_PROBE_SIZE = (67, 45)
_PLACES = ("do_resize", "do_center_crop", "do_pad")  # what moves or adds pixels

_Step = Callable[[Image.Image], Tensor]


def as_rgb(image: Any) -> Image.Image:
    """An image as three colours of eight bits, or ValueError; transparency is dropped.

    16-bit values are divided by 257, so that white stays white and a picture is the same
    one in both depths; pillow alone cuts them off at 255.
    """
    if not isinstance(image, Image.Image):
        raise ValueError(
            f"its image is a {type(image).__name__}, expected an image of pillow, not"
            " preprocessed. Cast the column with datasets.Image(), or remove the data"
            " set's own transform or format."
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


def labelled_images(
    task: str, raw: Any, classes: Sequence[str] | int
) -> LabelledImages:
    """A test set as FusionBench's task pools read it: dicts of `image` and `label`."""
    count = classes if isinstance(classes, int) else len(classes)
    if count < 2:
        raise ValueError(
            f"Task '{task}' has {count} class, of which every model is right. Give all"
            " classes that the model tells apart."
        )
    columns, number = label_columns(raw, count), partial(class_number, classes=count)
    if not isinstance(classes, int):
        check_class_order(task, raw, classes)
    samples = LabelledImages(
        task, raw, partial(_labelled, columns=columns, number=number)
    )
    samples.check()
    samples.labels = check_labels(task, raw, columns, number)
    return samples


class LabelledImages(Samples):
    """Dicts of `image` and `label`.

    Attributes:
        labels: All of them, where they were read without reading an image; else none.
    """

    labels: Sequence[int] = ()


def _labelled(
    sample: Any, columns: Sequence[str], number: Callable[[Any], int]
) -> dict[str, Any]:
    label = number(part(sample, columns, 1))
    return {"image": as_rgb(image_of(sample)), "label": label}


class ImageAdapter(SampledAdapter):
    """Pools whose samples are images; :meth:`prepare` makes the codec."""

    _codec: ImageCodec

    def check_datasets(self, split: str) -> None:
        super().check_datasets(split)
        chosen_folder()

    def look(self, task: str, sample: Any) -> Image.Image:
        return as_rgb(image_of(sample))

    def read(self, task: str | None, sample: Any) -> Tensor:
        """The preprocessed image, as bytes where that is exact."""
        return self._codec.encode(image_of(sample))

    def decode(self, stored: Tensor) -> Tensor:
        return self._codec.decode(stored)

    def dataset(self, task: str, split: str) -> EncodedImages:
        """A task's images, encoded already."""
        return EncodedImages(task, self._raw(task, split), partial(self.read, task))

    def keep(self, dataset: Dataset) -> None:
        if isinstance(dataset, EncodedImages) and self._codec.compact:
            dataset.keep(self._codec.name, self._codec.shape)


class ImageCodec:
    """Encodes images with a pool's processor, decodes them into model inputs.

    What is kept is the resized and cropped image as bytes, if the processor makes of them
    what it makes of the image, to the last bit; else the processor's own float32.

    Args:
        processor: A transformers image processor, or a torchvision transform.
        device: Where decoded images are wanted.

    Attributes:
        compact: Whether bytes are kept, a quarter of the memory.
        shape, name: Of what they are, and of the codec; only with bytes. Codecs of one
            name make the same of images.
    """

    def __init__(self, processor: Any, device: torch.device | str = "cpu"):
        self._full, parts = _steps_of(processor)
        self._bytes, finish = parts or (self._full, self._full)
        table = self._exact_table(finish) if parts else None
        self._table = None if table is None else table.to(device)
        self.compact = table is not None
        if self.compact:
            probe = self.encode(_probe())
            self.shape = tuple(probe.shape)
            self.name = fingerprint(_settings(processor), probe)

    def encode(self, image: Any) -> Tensor:
        """Shape (3, height, width), uint8 or float32."""
        image = as_rgb(image)
        return self._bytes(image) if self.compact else self._full(image).float()

    def decode(self, stored: Tensor) -> Tensor:
        """Shape (images, 3, height, width), as the processor makes them."""
        return stored if self._table is None else _looked_up(self._table, stored)

    def _exact_table(self, finish: _Step) -> Tensor | None:
        """What becomes of each byte of each colour, (3, 256); None if that is not all."""
        probe = _probe()
        stored, full = self._bytes(probe), self._full(probe)
        if stored.dtype != torch.uint8:
            return None
        ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
        table = finish(Image.fromarray(np.stack([ramp] * 3, -1))).flatten(1)
        return table if torch.equal(full, _looked_up(table, stored[None])[0]) else None


def _looked_up(table: Tensor, stored: Tensor) -> Tensor:
    """The table's entry for each byte of images, (images, 3, height, width)."""
    if stored.device.type != "cpu":
        colours = torch.arange(3, device=stored.device).view(3, 1, 1)
        return table[colours, stored.long()]
    images = stored.numpy().swapaxes(0, 1)  # several times faster than torch's indexing
    found = [t.take(i) for t, i in zip(table.numpy(), images, strict=True)]
    return torch.from_numpy(np.stack(found, 1))


def _settings(processor: Any) -> str:
    """A processor as text, without addresses of its functions in memory."""
    text = getattr(processor, "to_json_string", processor.__repr__)()
    return re.sub(r" at 0x[0-9a-f]+", "", f"{type(processor).__name__} {text}")


def _probe() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (*_PROBE_SIZE, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def _steps_of(processor: Any) -> tuple[_Step, tuple[_Step, _Step] | None]:
    """Image -> inputs; and image -> bytes, image -> inputs of the same size, if known."""
    if hasattr(processor, "transforms"):
        return _torchvision_steps(processor)
    if not hasattr(processor, "image_mean"):  # one of the user's own
        return processor, None

    run = partial(_inputs, processor)  # which processes that load data can be given
    in_place: dict[str, Any] = {n: False for n in _PLACES if hasattr(processor, n)}
    as_bytes = partial(run, do_rescale=False, do_normalize=False)
    return run, (as_bytes, partial(run, **in_place))


def _inputs(processor: Any, image: Image.Image, **options: bool) -> Tensor:
    return processor(images=[image], return_tensors="pt", **options)["pixel_values"][0]


def _torchvision_steps(compose: Any) -> tuple[_Step, tuple[_Step, _Step] | None]:
    """Split ``Compose([..., ToTensor(), Normalize()])`` before its ToTensor."""
    from torchvision.transforms import Compose, Normalize, PILToTensor, ToTensor

    steps = list(compose.transforms)
    at = next((i for i, s in enumerate(steps) if isinstance(s, ToTensor)), None)
    rest = [] if at is None else steps[at + 1 :]
    if at is None or len(rest) > 1 or not all(isinstance(s, Normalize) for s in rest):
        return compose, None
    return compose, (Compose([*steps[:at], PILToTensor()]), Compose(steps[at:]))
