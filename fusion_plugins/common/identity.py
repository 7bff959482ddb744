"""Short names for contents: of files, data and settings, for the keys of what is reused."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

_READ = 2**20  # bytes at once
_SAMPLES, _SAMPLE_BYTES = 64, 2**12  # of a file's content, for its identity


def fingerprint(*parts: Any) -> str:
    """A short name that changes with any value, shape or dtype of `parts`: 16 digits.

    Parts are tensors, arrays, pictures, strings, bytes, numbers, None, and mappings,
    sequences and sets of these; of something else there is a TypeError.
    """
    state = xxhash.xxh3_64()
    for part in parts:
        _update(state, part)
    return state.hexdigest()


def _update(state: Any, part: Any) -> None:
    if isinstance(part, Tensor):
        flat = part.detach().cpu().contiguous().view(-1)
        state.update(f"{tuple(part.shape)}{part.dtype}".encode())
        state.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    elif isinstance(part, (bytes, bytearray, memoryview)):
        state.update(f"bytes {len(part)}".encode())
        state.update(part)
    elif isinstance(part, Mapping):
        state.update(f"mapping {len(part)}".encode())
        for key in sorted(part, key=str):
            _update(state, str(key))
            _update(state, part[key])
    elif isinstance(part, (list, tuple, set, frozenset)):
        items = sorted(part, key=str) if isinstance(part, (set, frozenset)) else part
        state.update(f"items {len(part)}".encode())
        for item in items:
            _update(state, item)
    elif hasattr(part, "__array_interface__"):  # numpy's, and pictures
        array = np.ascontiguousarray(part)
        state.update(f"{array.shape}{array.dtype}".encode())
        if palette := getattr(part, "getpalette", lambda: None)():  # of a picture
            state.update(bytes(palette))
        if array.dtype == object:
            _update(state, array.tolist())
        else:
            state.update(array.tobytes())
    elif part is None or isinstance(part, (bool, int, float, complex, str, PathLike)):
        text = str(part) if isinstance(part, PathLike) else part
        state.update(f"{type(text).__name__} {text!r}\0".encode())
    else:
        raise TypeError(
            f"a fingerprint of {type(part).__name__} is not known; give tensors, arrays,"
            " pictures, numbers, text, or lists and mappings of these."
        )


def data_fingerprint(dataset: Any, indices: Iterable[int] | None = None) -> str:
    """Of the samples of a map-style dataset: all of them, or those at `indices`."""
    chosen = range(len(dataset)) if indices is None else indices
    return fingerprint([dataset[index] for index in chosen])


def file_fingerprint(path: str | PathLike[str]) -> str:
    """Of a file's bytes; worked out anew only once its size or time has changed."""
    path = Path(path)
    status = path.stat()
    return _file_fingerprint(str(path.resolve()), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _file_fingerprint(path: str, size: int, changed: int) -> str:
    return _digest_of(path, xxhash.xxh3_64())


def file_digest(path: str | PathLike[str]) -> str:
    """A hash of a file's bytes as they are now, also where no time tells of a change."""
    return _digest_of(path, hashlib.blake2b(digest_size=32))


def file_checksum(path: str | PathLike[str]) -> str:
    """As :func:`file_digest`, ten times faster: tells of damage, not of forgery."""
    return _digest_of(path, xxhash.xxh3_128())


def checksum(content: bytes) -> str:
    """What :func:`file_checksum` gives for a file with this content."""
    return xxhash.xxh3_128(content).hexdigest()


def _digest_of(path: str | PathLike[str], state: Any) -> str:
    part = bytearray(_READ)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(part):
            state.update(memoryview(part)[:count])
    return state.hexdigest()


def file_identity(file: Path) -> list[int | str]:
    """What tells one version of a file from another, without reading all of it.

    Its name, bytes, times of change (of content, of anything) in ns, and a fingerprint of
    parts all over it, for disks that keep no times.
    """
    stat = file.stat()
    with file.open("rb", buffering=0) as stream:
        parts = [stream.read(2**16)]
        for number in range(_SAMPLES):
            stream.seek(stat.st_size * number // _SAMPLES)
            parts.append(stream.read(_SAMPLE_BYTES))
    times = (stat.st_mtime_ns, stat.st_ctime_ns)
    return [file.name, stat.st_size, *times, fingerprint(*parts)]


def folder_fingerprint(folder: str | PathLike[str]) -> str:
    """Of the names and bytes of all files below a folder; hidden ones do not count.

    Links to folders are followed, each folder once.
    """
    folder, seen = Path(folder), set()
    files: list[Path] = []
    for place, folders, found in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        files += [Path(place, name) for name in found]
    files = sorted(path for path in files if path.is_file())
    names = {path: path.relative_to(folder) for path in files}
    return fingerprint(
        {
            str(name): file_fingerprint(path)
            for path, name in names.items()
            if not any(part.startswith(".") for part in name.parts)
        }
    )
