"""One model's tensors by name, read when asked for and never all at once."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .files import (
    TensorSpec,
    data_starts,
    read_header,
    safetensors_files,
    spec_bytes,
)


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

    def read_into(self, out: Tensor, name: str, rows: slice | None = None) -> None:
        """Read into a buffer of the right number of entries, converting the dtype."""
        out.copy_(self.read(name, rows).reshape(out.shape))

    def tied_groups(self) -> list[list[str]]:
        """Groups of two or more names that are one and the same tensor."""
        return []


class StateDictCheckpoint(Checkpoint):
    """A state dict already in memory (or FusionBench's lazy one)."""

    def __init__(self, state_dict: Mapping[str, Tensor], label: str):
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


def module_checkpoint(module: nn.Module, label: str) -> StateDictCheckpoint:
    """A module's state dict as a checkpoint; its tensors are shared, not copied."""
    return StateDictCheckpoint(module.state_dict(), label)


class SafetensorsCheckpoint(Checkpoint):
    """A ``.safetensors`` file, or a folder with one file or an index of shards.

    Raises:
        ValueError: The path holds no safetensors; the message says what it holds.
    """

    def __init__(self, path: str | Path, label: str):
        self.path = Path(path)
        specs, self._place_of, self._own = {}, {}, threading.local()
        for file in safetensors_files(self.path, label):
            specs |= read_header(file, label)
            for name, start in data_starts(file).items():
                self._place_of[name] = (file, start)
        super().__init__(label, specs)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        shape, dtype = self.specs[name]
        if rows is not None:
            first, last, _ = rows.indices(shape[0])
            shape = (max(last - first, 0), *shape[1:])
        out = torch.empty(shape, dtype=dtype)
        self._fill(out, name, rows)
        return out

    def read_into(self, out: Tensor, name: str, rows: slice | None = None) -> None:
        dtype = self.specs[name].dtype
        if out.dtype == dtype and out.is_contiguous():
            self._fill(out, name, rows)
            return
        stored = self._scratch(out.numel() * dtype.itemsize).view(dtype)
        self._fill(stored, name, rows)
        out.copy_(stored.view(out.shape))

    def _scratch(self, size: int) -> Tensor:
        """Bytes to read into, the thread's own; new memory would cost page faults."""
        held = getattr(self._own, "scratch", None)
        if held is None or held.numel() < size:
            held = self._own.scratch = torch.empty(size, dtype=torch.uint8)
        return held[:size]

    def _fill(self, out: Tensor, name: str, rows: slice | None) -> None:
        # Plain reads, not a mapping: that costs a page fault for every few pages, and
        # its pages count as this process's memory.
        shape, dtype = self.specs[name]
        file, start = self._place_of[name]
        if rows is not None:
            first, _, _ = rows.indices(shape[0])
            start += first * spec_bytes(TensorSpec(shape[1:], dtype))
        content = out.view(-1).view(torch.uint8).numpy()
        if self._opened(file).readinto(start, content) != content.nbytes:
            raise ValueError(
                f"{self.label}: {file} ends inside tensor '{name}'; was it replaced"
                " while it was read? Save it again."
            )

    def _opened(self, file: Path) -> _OpenFile:
        """The file, kept open by each thread until it turns to another one."""
        held = getattr(self._own, "file", None)
        if held is None or held.path != file:
            held = self._own.file = _OpenFile(file)
        return held


class _OpenFile:
    """A file that stays open: the system reads ahead only behind one handle."""

    def __init__(self, path: Path):
        self.path = path
        self._stream = path.open("rb", buffering=0)

    def readinto(self, start: int, content) -> int:
        """Fill `content` from byte `start`; returns how much there was."""
        self._stream.seek(start)
        got, view = 0, memoryview(content)
        while got < content.nbytes:  # one call gives 2 GiB at most
            count = self._stream.readinto(view[got:])
            if not count:
                break
            got += count
        return got

    def __del__(self):
        if hasattr(self, "_stream"):
            self._stream.close()
