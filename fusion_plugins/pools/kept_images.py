"""Images as a processor resizes them: made once, however often and by whom they are seen."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO, Any
from weakref import WeakSet

import numpy as np
import torch
import xxhash
from torch import Tensor

from ..common import get_logger
from ..common.folders import require_folder
from ..common.identity import fingerprint
from .samples import Samples, stored_contents

log = get_logger(__name__)

#: Environment variable, PACKAGE_IMAGES: a folder where they stay for later runs.
FOLDER = f"{__name__.partition('.')[0].upper()}_IMAGES"
LIMIT = 4 * 2**30  # bytes without such a folder: one for files may lie in memory
_MARK = np.dtype(np.uint64)


class Room:
    """Room for the encoded images of one data set.

    It is in a file, which processes that load data share. Each image has a mark of its
    content, so that one that was not wholly written is none.
    """

    def __init__(self, file: IO[bytes], count: int, shape: tuple[int, ...]):
        self.nbytes = _bytes_of(count, shape)
        whole = np.memmap(file, np.uint8, "r+", shape=(self.nbytes,))
        start = count * _MARK.itemsize
        self._marks = whole[:start].view(_MARK)
        self._images = whole[start:].reshape(count, *shape)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # a process that is no fork has no share in the file

    def get(self, index: int) -> Tensor | None:
        """An image that has been put here."""
        mark, image = int(self._marks[index]), self._images[index]
        return torch.from_numpy(image) if mark and mark == _mark(image) else None

    def put(self, index: int, image: Tensor) -> None:
        """Keep an image if it has the shape of the others."""
        if image.shape == self._images.shape[1:]:
            self._images[index] = image.numpy()
            self._marks[index] = _mark(self._images[index])


def _mark(image: np.ndarray) -> int:
    return xxhash.xxh3_64_intdigest(image.data) or 1  # 0: there is none


_ROOMS: dict[str, Room] = {}  # of data sets, by their contents
_NAMELESS: WeakSet[Room] = WeakSet()


def chosen_folder() -> Path | None:
    """The folder of :data:`FOLDER`; ValueError if it cannot be written into."""
    given = os.environ.get(FOLDER)
    return require_folder(FOLDER, given) if given else None


def shared_room(
    raw: Any, codec: str, shape: tuple[int, ...], make: bool
) -> Room | None:
    """Where the images of equal data sets are kept as a codec encodes them.

    It stays for this process and, where :data:`FOLDER` is set, for later ones. None where
    there is none and `make` is false, for lack of room, or because nothing tells what
    the data set holds.
    """
    folder = chosen_folder()
    if not (make or _ROOMS or folder):
        return None
    contents = stored_contents(raw)
    if contents is None:
        return None
    key = fingerprint(contents, codec)
    if key not in _ROOMS and (make or folder):
        path = folder / f"{key}.images" if folder else None
        room = new_room(len(raw), shape, path)
        if room is None:
            return None
        _ROOMS[key] = room
    return _ROOMS.get(key)


def new_room(
    count: int, shape: tuple[int, ...], path: Path | None = None
) -> Room | None:
    """Room in a file of that path, or in one without a name that goes with the process."""
    needed, folder = _bytes_of(count, shape), path and path.parent
    try:
        if path is not None and path.is_file() and path.stat().st_size == needed:
            with path.open("r+b") as file:
                return Room(file, count, shape)
        folder = folder or Path(tempfile.gettempdir())
        free = shutil.disk_usage(folder).free // 2
        if path is None:
            free = min(free, LIMIT - sum(room.nbytes for room in _NAMELESS))
        if needed > free or not hasattr(os, "posix_fallocate"):
            raise OSError("too little room")
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, needed)
            if path is not None:
                os.link(file.name, whole := f"{file.name}{path.suffix}")
                os.replace(whole, path)  # of another process, or cut off
            room = Room(file, count, shape)
    except OSError as error:
        level = logging.DEBUG if path is None else logging.WARNING
        log.log(level, "%d resized images are not kept in %s: %s", count, folder, error)
        return None
    if path is None:
        _NAMELESS.add(room)
    return room


def _bytes_of(count: int, shape: tuple[int, ...]) -> int:
    return count * (_MARK.itemsize + int(np.prod(shape)))


class EncodedImages(Samples):
    """A data set's images as a codec encodes them."""

    _room: Room | None = None

    def keep(self, codec: str, shape: tuple[int, ...]) -> None:
        """Keep each image that is made, for everybody with an equal data set."""
        self._room = shared_room(self.raw, codec, shape, make=True)

    def __getitem__(self, index: int) -> Tensor:
        image = self._room.get(index) if self._room else None
        if image is None:
            image = super().__getitem__(index)
            if self._room is not None:
                self._room.put(index, image)
        return image
