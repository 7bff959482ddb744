"""Test sets that share their images with the methods that learn from them."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset

from ..pools.image_processing import ImageCodec, LabelledImages
from ..pools.kept_images import Room, new_room, shared_room


class KeptTestSet(Dataset):
    """Dicts of an `image`, as the model takes it, and a `label`."""

    def __init__(self, samples: LabelledImages, codec: ImageCodec):
        self._samples, self._codec = samples, codec
        self._room: Room | None = None
        self._looked = False  # for room: it costs reading what is stored
        self._labels = torch.full((len(samples),), -1)  # not yet
        if samples.labels:
            self._labels = torch.tensor(samples.labels)
        else:
            self._labels.share_memory_()  # with processes that load data

    def keep(self, make: bool) -> None:
        """Take images from where equal data sets have theirs; `make` such a place."""
        if self._room is not None or self._looked:
            return
        self._room = shared_room(
            self._samples.raw, self._codec.name, self._codec.shape, make
        )
        if self._room is None and make:
            self._room = new_room(len(self), self._codec.shape)
        self._looked = make

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self._room.get(index) if self._room else None
        if image is None or self._labels[index] < 0:
            sample = self._samples[index]
            self._labels[index] = sample["label"]
            image = self._codec.encode(sample["image"]) if image is None else image
            if self._room is not None:
                self._room.put(index, image)
        inputs = self._codec.decode(image[None])[0]
        return {"image": inputs, "label": int(self._labels[index])}
