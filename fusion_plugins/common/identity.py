"""Content fingerprints of models and data, for keys that must change when these change."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

_CHUNK = 2**22  # bytes read at once
_DIGITS = 32  # hexadecimal, of every fingerprint


def file_fingerprint(path: str | os.PathLike) -> str:
    """A file's content as 32 hexadecimal digits.

    Read once per process, and again when its size or its time of change differ.
    """
    status = os.stat(path)
    return _of_file(os.path.abspath(path), status.st_size, status.st_mtime_ns)


@cache
def _of_file(path: str, size: int, mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()[:_DIGITS]


def folder_fingerprint(path: str | os.PathLike) -> str:
    """The names and contents of all files below a folder; hidden ones do not count."""
    folder = Path(path)
    files = (file for file in folder.rglob("*") if file.is_file())
    names = {file.relative_to(folder): file for file in files}
    return content_fingerprint(
        {
            name.as_posix(): file_fingerprint(file)
            for name, file in names.items()
            if not any(part.startswith(".") for part in name.parts)
        }
    )


def data_fingerprint(dataset: Any, indices: Iterable[int]) -> str:
    """The samples of a data set at some positions, in this order.

    Args:
        dataset: Anything that gives a sample for an index.
        indices: Positions; the samples may be all that `content_fingerprint` takes.
    """
    digest = hashlib.sha256()
    for index in indices:
        _feed(digest, dataset[index])
    return digest.hexdigest()[:_DIGITS]


def content_fingerprint(value: object) -> str:
    """Nested plain data, tensors, arrays and images as 32 hexadecimal digits.

    Types, shapes and values count, and the order of lists; that of mappings does not.

    Raises:
        TypeError: Something else is in it.
    """
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()[:_DIGITS]


def _feed(digest: Any, value: object) -> None:
    """Every value with its kind and length, so that no two contents look alike."""
    if isinstance(value, Mapping):
        digest.update(f"mapping {len(value)};".encode())
        for key in sorted(value, key=repr):
            _feed(digest, key)
            _feed(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(f"list {len(value)};".encode())
        for item in value:
            _feed(digest, item)
    else:
        kind, content = _leaf(value)
        digest.update(f"{kind} {len(content)};".encode())
        digest.update(content)


def _leaf(value: object) -> tuple[str, bytes]:
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        content = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        return f"tensor {value.dtype} {tuple(value.shape)}", content
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"array {value.dtype} {value.shape}", value.tobytes()
    if isinstance(value, Image.Image):
        return f"image {value.mode} {value.size}", value.tobytes()
    if value is None or isinstance(value, (bool, int, float, complex)):
        return type(value).__name__, repr(value).encode()
    if isinstance(value, (str, os.PathLike)):
        return "text", os.fspath(value).encode("utf-8", "surrogateescape")
    if isinstance(value, bytes):
        return "bytes", value
    raise TypeError(
        f"a fingerprint of {type(value).__name__} is not known; give tensors, arrays,"
        " images, numbers, text, or lists and mappings of these."
    )
