"""Reading rows of tensors from files that stay open."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import TensorSpec, spec_bytes


class Scratch:
    """Bytes to read into, a thread's own; new memory would cost page faults."""

    def __init__(self) -> None:
        self._reserve(2**18)

    def _reserve(self, size: int) -> None:
        self._tensor = torch.empty(size, dtype=torch.uint8)
        self._view = self._tensor.numpy().data

    def take(self, size: int) -> tuple[Tensor, memoryview]:
        """The first `size` bytes, as a tensor and as what a file reads into."""
        if size > len(self._view):
            self._reserve(size)
        return self._tensor[:size], self._view[:size]


class TensorReader:
    """Reads rows of one tensor; what they have in common is looked up once."""

    def __init__(
        self,
        file: OpenFile,
        start: int,
        spec: TensorSpec,
        name: str,
        scratch: Scratch,
    ):
        self._file, self._start, self._dtype, self._name = file, start, spec.dtype, name
        self._row_bytes = spec_bytes(TensorSpec(spec.shape[1:], spec.dtype))
        self._scratch = scratch

    def __call__(self, out: Tensor, rows: slice | None) -> None:
        # Plain reads, not a mapping: that costs a page fault for every few pages, and
        # its pages count as this process's memory.
        start = self._start
        if rows is not None:
            start += rows.start * self._row_bytes
        if out.dtype == self._dtype and out.is_contiguous():
            content = out.view(-1).view(torch.uint8).numpy().data
            self._file.read_into(content, start, self._name)
            return
        stored, content = self._scratch.take(out.numel() * self._dtype.itemsize)
        self._file.read_into(content, start, self._name)
        out.copy_(stored.view(self._dtype).view(out.shape))


class OpenFile:
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
