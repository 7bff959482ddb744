"""Read pickled modules without running any code that they name.

Public OpenCLIP checkpoints are whole modules, pickled with classes that today's open_clip
has moved or changed. Only their tensors and a few attributes are wanted: every class that
such a file names becomes an inert :class:`Record`, and tensors are rebuilt by torch.
"""

from __future__ import annotations

import collections
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import torch
from torch import Tensor

# Packages whose classes an image encoder or head may be made of; none is imported.
_INERT_PACKAGES = {
    "PIL",
    "argparse",
    "clip",
    "functools",
    "fusion_bench",
    "numpy",
    "open_clip",
    "pathlib",
    "src",
    "timm",
    "torch",
    "torchvision",
}
_INERT_NAMES = {("builtins", "getattr"), ("__builtin__", "getattr")}  # of enumerations


class Record:
    """What a pickle says of an object: its class's name, its arguments, its state."""

    arguments: tuple[Any, ...]

    def __new__(cls, *args: Any, **kwargs: Any) -> Record:
        record = super().__new__(cls)
        record.arguments = args
        return record

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            self.__dict__.update(part if isinstance(part, dict) else {})

    @property
    def kind(self) -> str:
        """The name of the class, without its module."""
        return type(self).__name__

    def walk(self) -> Iterator[Record]:
        """This module and every module inside it."""
        yield self
        for child in self.__dict__.get("_modules", {}).values():
            if isinstance(child, Record):
                yield from child.walk()

    def child(self, name: str) -> Record | None:
        """A module directly inside."""
        return self.__dict__.get("_modules", {}).get(name)

    def state_dict(self) -> dict[str, Tensor]:
        """What the module's own state_dict() would give."""
        return dict(_tensors(self, ""))


def _tensors(record: Record, prefix: str) -> Iterator[tuple[str, Tensor]]:
    state = record.__dict__
    transient = state.get("_non_persistent_buffers_set", ())
    buffers = {
        name: value
        for name, value in state.get("_buffers", {}).items()
        if name not in transient
    }
    for name, value in (state.get("_parameters", {}) | buffers).items():
        if isinstance(value, Tensor):
            yield prefix + name, value.detach()
    for name, child in state.get("_modules", {}).items():
        if isinstance(child, Record):
            yield from _tensors(child, f"{prefix}{name}.")


def _storage_from_bytes(content: bytes) -> Any:
    """torch's own function of this name would unpickle anything."""
    stream = io.BytesIO(content)
    return torch.load(stream, map_location="cpu", weights_only=True)


def _encode(text: str, encoding: str = "utf-8") -> bytes:
    """How old pickle protocols write bytes; Python's own also runs other codecs."""
    return text.encode(encoding)


_REAL = {
    ("_codecs", "encode"): _encode,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): _storage_from_bytes,
}


class _InertUnpickler(pickle.Unpickler):
    """Finds rebuilt tensors, containers and records; nothing that could do harm."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _REAL:
            return _REAL[module, name]
        inert = module.partition(".")[0] in _INERT_PACKAGES
        if inert or (module, name) in _INERT_NAMES:
            return type(name, (Record,), {"__module__": module})
        raise pickle.UnpicklingError(
            f"it names {module}.{name}, which no image encoder or head is made of"
        )


def _load(stream: IO[bytes], **kwargs: Any) -> Any:
    return _InertUnpickler(stream, **kwargs).load()


# What torch.load needs of a pickle module.
_INERT_PICKLE = SimpleNamespace(
    __name__="inert_pickle",
    Unpickler=_InertUnpickler,
    load=_load,
    loads=lambda content, **kwargs: _load(io.BytesIO(content), **kwargs),
)


def read_pickle(path: Path) -> object:
    """The content of a pickle, or of a file written by torch.save.

    Returns:
        Tensors and containers as they are, everything else as :class:`Record`.

    Raises:
        ValueError: Damaged, or it names something that no image model is made of.
    """
    try:
        if written_by_torch(path):
            return torch.load(
                path,
                map_location="cpu",
                pickle_module=_INERT_PICKLE,
                weights_only=False,
            )
        with path.open("rb") as stream:
            return _load(stream)
    except (
        pickle.UnpicklingError,
        EOFError,
        AttributeError,
        ImportError,
        IndexError,
        KeyError,
        RuntimeError,
        TypeError,
        UnicodeDecodeError,
    ) as error:
        raise ValueError(
            f"{path} cannot be read as a pickled module: {error}"
        ) from error


def written_by_torch(path: Path) -> bool:
    """Whether a file is an archive, or starts with torch's number: not a bare pickle."""
    with path.open("rb") as stream:
        start = stream.read(64)
    number = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
    return start.startswith((b"PK\x03\x04", number))
