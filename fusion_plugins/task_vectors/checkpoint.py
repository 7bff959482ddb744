"""One model's tensors by name, read when asked for and never all at once."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from . import files
from .blocks import Reader, Room
from .files import TensorSpec

Places = dict[str, tuple[Any, int]]  # tensor name -> file, and where in it


class Checkpoint:
    """Names, shapes and dtypes of one model, and a way to read rows of its tensors.

    Args:
        label: What error messages call this model, e.g. ``expert 'mnist'``.
        specs: Tensor name -> shape and dtype, in the model's own order.
    """

    def __init__(self, label: str, specs: dict[str, TensorSpec]):
        self.label = label
        self.specs = specs

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """The tensor, or rows of its first dimension; treat the result as read-only."""
        raise NotImplementedError

    def reader(self, name: str) -> Reader:
        """What reads the tensor into rooms of the right size.

        Take one for each walk over a tensor, and use it in the thread that asked for it.
        """

        def read_into(room: Room, rows: slice | None) -> None:
            room.values.copy_(self.read(name, rows).reshape(-1))

        return read_into

    def tied_groups(self) -> list[list[str]]:
        """Groups of two or more names that are one and the same tensor."""
        return []


class StateDictCheckpoint(Checkpoint):
    """A `state_dict` in memory, or FusionBench's lazy one; errors call it `label`."""

    def __init__(self, state_dict: Mapping[str, Tensor], label: str):
        for name, value in state_dict.items():
            _require_plain(name, value, label)
        specs = {k: TensorSpec(tuple(v.shape), v.dtype) for k, v in state_dict.items()}
        super().__init__(label, specs)
        self._tensors = state_dict

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        tensor = self._tensors[name].detach()
        return tensor if rows is None else tensor[rows]

    def tied_groups(self) -> list[list[str]]:
        groups: dict[tuple, list[str]] = {}
        for name, tensor in self._tensors.items():
            if tensor.numel() and tensor.device.type != "meta":
                place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
                groups.setdefault(place, []).append(name)
        return [names for names in groups.values() if len(names) > 1]


def is_strided(tensor: Tensor) -> bool:
    """Whether a tensor lies in memory as most do, neither sparse nor nested."""
    return tensor.layout == torch.strided and not tensor.is_nested


def _require_plain(name: str, value: Any, label: str) -> None:
    if not isinstance(value, Tensor):
        kind = f"a {type(value).__name__}"
    elif is_lazy(value) or value.is_meta:
        kind = "without values"
    elif hasattr(value, "__tensor_flatten__"):  # parts of one, as a DTensor is
        kind = f"a {type(value).__name__}"
    elif value.is_quantized or value.is_complex() or not is_strided(value):
        kind = f"a tensor of {value.dtype}, {value.layout}"
    else:
        return
    raise ValueError(
        f"{label}: '{name}' is {kind}, which cannot be merged. Give a model with plain"
        " tensors of real numbers, neither quantised nor sparse; a buffer that is not"
        " saved (persistent=False) may be either."
    )


def module_checkpoint(module: nn.Module, label: str) -> StateDictCheckpoint:
    """A module's state dict as a checkpoint; its tensors are shared, not copied."""
    return StateDictCheckpoint(module.state_dict(), label)


class NamedAs(Checkpoint):
    """A checkpoint's tensors under other names.

    Args:
        checkpoint: What is read.
        names: Name -> the checkpoint's own; tensors without one are left out.
    """

    def __init__(self, checkpoint: Checkpoint, names: Mapping[str, str]):
        specs = {name: checkpoint.specs[stored] for name, stored in names.items()}
        super().__init__(checkpoint.label, specs)
        self._checkpoint, self._stored = checkpoint, dict(names)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        return self._checkpoint.read(self._stored[name], rows)

    def reader(self, name: str) -> Reader:
        return self._checkpoint.reader(self._stored[name])


class _FileCheckpoint(Checkpoint):
    """Tensors that lie in files as they are."""

    def __init__(self, label: str, specs: dict[str, TensorSpec], places: Places):
        super().__init__(label, specs)
        self._place_of = places
        self._own = threading.local()  # each thread's open file

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        shape, dtype = self.specs[name]
        if rows is not None:
            first, last, _ = rows.indices(shape[0])
            shape, rows = (max(last - first, 0), *shape[1:]), slice(first, last)
        out = torch.empty(shape, dtype=dtype, device="cpu")
        self.reader(name)(Room.of(out.view(-1)), rows)
        return out

    def reader(self, name: str) -> Reader:
        file, start = self._place_of[name]
        return _TensorReader(self._opened(file), start, self.specs[name], name)

    def _opened(self, file: Any) -> _OpenFile:
        raise NotImplementedError


class SafetensorsCheckpoint(_FileCheckpoint):
    """A ``.safetensors`` file, or a folder with one file or an index of shards.

    Args:
        path: The file or folder.
        label: What errors call it.

    Raises:
        ValueError: It holds no safetensors, a tensor twice, or quantised weights.
    """

    def __init__(self, path: str | Path, label: str):
        self.path = Path(path)
        files.require_plain_weights(self.path, label)
        specs: dict[str, TensorSpec] = {}
        places: Places = {}
        for file in files.safetensors_files(self.path, label):
            for name, spec in files.read_header(file, label).items():
                if name in specs:
                    raise ValueError(
                        f"{label}: tensor '{name}' is both in {places[name][0]} and in"
                        f" {file.name}. Save the model again, with each tensor once."
                    )
                specs[name] = spec
            places |= {n: (file, at) for n, at in files.data_starts(file).items()}
        super().__init__(label, specs, places)

    def _opened(self, file: Path) -> _OpenFile:
        held: _OpenFile | None = getattr(self._own, "file", None)
        if held is None or held.path != file:
            stream = file.open("rb", buffering=0)
            held = self._own.file = _OpenFile(file, stream, self.label)
        return held


class SpilledCheckpoint(_FileCheckpoint):
    """A module's tensors in a file without a name: gone with the process, however it ends.

    Args:
        module: Is read once and may be forgotten.
        label: What error messages call this model.
    """

    def __init__(self, module: nn.Module, label: str):
        held = module_checkpoint(module, label)
        stream = tempfile.TemporaryFile(buffering=0)
        self._file = _OpenFile(Path("its temporary copy"), stream, label)
        first = {name: group[0] for group in held.tied_groups() for name in group}
        places: Places = {}
        for name in held.specs:
            if first.get(name, name) in places:
                places[name] = places[first[name]]
                continue
            places[name] = (None, stream.tell())
            flat = held.read(name).cpu().reshape(-1).view(torch.uint8)
            content = memoryview(flat.numpy().data)
            while content:  # one call takes 2 GiB at most
                content = content[stream.write(content) :]
        super().__init__(label, held.specs, places)

    def _opened(self, file: None) -> _OpenFile:
        return self._file


class _TensorReader:
    """Reads rows of one tensor; what they have in common is looked up once."""

    def __init__(self, file: _OpenFile, start: int, spec: TensorSpec, name: str):
        self._file, self._start, self._name = file, start, name
        self._row_bytes = files.spec_bytes(TensorSpec(spec.shape[1:], spec.dtype))

    def __call__(self, room: Room, rows: slice | None) -> None:
        # No mapping: it costs page faults, and its pages count as this process's memory.
        start = self._start + (0 if rows is None else rows.start * self._row_bytes)
        self._file.read_into(room.content, start, self._name)


class _OpenFile:
    """A file that stays open: the system reads ahead only behind one handle."""

    def __init__(self, path: Path, stream: Any, label: str):
        self.path, self._stream, self._label = path, stream, label
        self._lock = threading.Lock()  # threads may share a file without a name

    def read_into(self, content: memoryview, start: int, name: str) -> None:
        """Fill `content` from byte `start`, where tensor `name` is."""
        with self._lock:
            self._stream.seek(start)
            while content:  # one call gives 2 GiB at most
                count = self._stream.readinto(content)
                if not count:
                    raise ValueError(
                        f"{self._label}: {self.path} ends inside tensor '{name}'; was it"
                        " replaced while it was read? Save it again."
                    )
                content = content[count:]

    def __del__(self) -> None:
        self._stream.close()
