"""Test images, resized and cropped once however often they are evaluated."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ..common import get_logger
from ..pools.image_processing import ImageCodec
from ..pools.samples import Samples

log = get_logger(__name__)

LIMIT = 4 * 2**30  # bytes, of all tasks together: folders for files may lie in memory


class KeptImages(Dataset):
    """A test set that keeps its images as the processor has resized and cropped them.

    They lie as bytes in a file without a name, which goes with the process; processes that
    load data share it. Where a processor would not make the same of them once more, or
    the disk has no room, nothing is kept. So results are the same to the last digit.

    Args:
        samples: Gives dicts of `image` and `label`.
        processor: What prepares images for the model.
        room: Bytes that the file may take.

    Attributes:
        nbytes: Bytes that it takes.
    """

    def __init__(self, samples: Samples, processor: Any, room: int = LIMIT):
        self._samples = samples
        self._codec = ImageCodec(processor)
        self._labels: Any = None
        self._images: Any = None
        self.nbytes = 0
        first = samples[0]["image"]
        if self._codec.keeps(first):
            shape = np.asarray(self._codec.resized(first)).shape
            self._labels, self._images = _reserved(len(samples), shape, room)
        if self._images is not None:
            self.nbytes = self._images.nbytes
            log.debug("Keeping the images of task '%s'.", samples.task)

    def __len__(self) -> int:
        return len(self._samples)

    def __getstate__(self) -> dict[str, Any]:
        # A process that is no fork has no share in the file.
        return {"_samples": self._samples, "_images": None}

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._images is None:
            return self._samples[index]
        if number := int(self._labels[index]):  # 0: not yet; else one more than it
            return {"image": Image.fromarray(self._images[index]), "label": number - 1}
        sample = self._samples[index]
        image = np.asarray(self._codec.resized(sample["image"]))
        if image.shape == self._images.shape[1:]:
            self._images[index] = image
            self._labels[index] = sample["label"] + 1
        return sample


def _reserved(
    count: int, shape: tuple[int, ...], room: int
) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Labels and images, all zero, in a file on which the disk has set aside room."""
    sizes = 8 * count, count * int(np.prod(shape))
    room = min(room, shutil.disk_usage(tempfile.gettempdir()).free // 2)
    if sum(sizes) > room or not hasattr(os, "posix_fallocate"):
        return None, None
    with tempfile.TemporaryFile() as file:
        try:
            os.posix_fallocate(file.fileno(), 0, sum(sizes))
        except OSError:
            return None, None
        whole = np.memmap(file, np.uint8, "r+", shape=(sum(sizes),))
    return whole[: sizes[0]].view(np.int64), whole[sizes[0] :].reshape(count, *shape)
