"""Writing safetensors shards row by row, in any order, without holding a tensor."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from ..task_vectors.files import DTYPE_NAMES, TensorSpec, spec_bytes


@dataclass(frozen=True)
class Shard:
    """One file of the result.

    Attributes:
        file: File name.
        specs: Tensor name -> shape and dtype.
    """

    file: str
    specs: dict[str, TensorSpec]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors, without the header."""
        return sum(map(spec_bytes, self.specs.values()))


def plan_shards(specs: Mapping[str, TensorSpec], limit: int) -> list[Shard]:
    """Split tensors, in their order, into files of at most `limit` bytes.

    A tensor larger than that gets a file of its own.
    """
    split = split_state_dict_into_shards_factory(
        dict(specs),
        get_storage_size=spec_bytes,
        filename_pattern="{suffix}",
        max_shard_size=limit,
    )
    parts = split.filename_to_tensors.values()
    return [
        # One file is numbered too: the index alone makes the folder a model.
        Shard(
            f"model-{number:05d}-of-{len(parts):05d}.safetensors",
            {name: specs[name] for name in names},
        )
        for number, names in enumerate(parts, 1)
    ]


def index_of(shards: list[Shard]) -> dict:
    """The content of ``model.safetensors.index.json``."""
    weight_map = {name: shard.file for shard in shards for name in shard.specs}
    total = sum(shard.nbytes for shard in shards)
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


class ShardWriter:
    """A safetensors file whose tensors are filled in any order, by several threads.

    Args:
        shard: What the file holds.
        path: Where it is written.
    """

    def __init__(self, shard: Shard, path: Path):
        self.shard, self._path = shard, path
        header, self._starts = _header(shard.specs)
        self._remaining = shard.nbytes
        self._lock = threading.Lock()
        self._stream = path.open("wb", buffering=0)
        self._write_at(0, memoryview(header))

    @property
    def is_full(self) -> bool:
        """Whether every byte has been written."""
        return self._remaining == 0

    def write(self, name: str, first_row: int, rows: Tensor) -> bool:
        """Write rows of a tensor, from `first_row` on; they must not overlap others.

        Returns:
            Whether they were the last ones of the file.
        """
        spec = self.shard.specs[name]
        content = rows.to(spec.dtype).contiguous().view(-1).view(torch.uint8).numpy()
        start = self._starts[name]
        if first_row:
            start += first_row * spec_bytes(TensorSpec(spec.shape[1:], spec.dtype))
        with self._lock:
            self._write_at(start, memoryview(content.data))
            self._remaining -= content.nbytes
            return self.is_full

    def _write_at(self, start: int, content: memoryview) -> None:
        try:
            self._stream.seek(start)
            written = 0
            while written < len(content):
                written += self._stream.write(content[written:])
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(
                error.errno,
                f"The disk of {self._path.parent} is full. Free space and start the same"
                " command again: shards that are complete are kept",
            ) from error

    def finish(self) -> None:
        """Bring the complete file to the disk."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()

    def abandon(self) -> None:
        """Close an incomplete file; a later run writes it anew."""
        self._stream.close()


def _header(specs: Mapping[str, TensorSpec]) -> tuple[bytes, dict[str, int]]:
    """The file's first bytes, and where each tensor starts."""
    # Wide entries first: every tensor then starts at a multiple of its entry's size.
    ordered = sorted(specs.items(), key=lambda item: -item[1].dtype.itemsize)
    entries: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    position = 0
    for name, spec in ordered:
        starts[name], end = position, position + spec_bytes(spec)
        entries[name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    offset = 8 + len(text)
    starts = {name: offset + start for name, start in starts.items()}
    return len(text).to_bytes(8, "little") + text, starts
