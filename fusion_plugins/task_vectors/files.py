"""What safetensors files hold, and where, without reading a tensor."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_HEADER_BYTES = 2**16  # of most models; more is read as needed
DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class TensorSpec(NamedTuple):
    """What is known of a tensor without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def spec_bytes(spec: TensorSpec) -> int:
    """How much room the tensor takes in memory or in a file."""
    return torch.Size(spec.shape).numel() * spec.dtype.itemsize


def safetensors_files(path: Path, label: str) -> list[Path]:
    """The safetensors files that make up the model at ``path``.

    Raises:
        ValueError: Nothing there, only pickles, or a shard of the index is missing.
    """
    if path.is_file() and path.suffix == ".safetensors":
        return [path]
    if not path.exists():
        raise ValueError(f"{label}: {path} does not exist.")
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    indices = sorted(path.glob("*.safetensors.index.json")) if path.is_dir() else []
    if len(indices) == 1:
        return _indexed_files(indices[0], label)
    held = sorted(p.name for p in path.iterdir()) if path.is_dir() else [path.name]
    raise ValueError(
        f"{label}: expected model.safetensors or one *.safetensors.index.json in {path},"
        f" found {held[:8]}. Convert pickles once with"
        " model.save_pretrained(folder, safe_serialization=True)."
    )


def _indexed_files(index: Path, label: str) -> list[Path]:
    weight_map = json.loads(index.read_text()).get("weight_map")
    if not weight_map:
        raise ValueError(
            f"{label}: {index} is not an index of shards, it has no weight_map. Download"
            " the checkpoint again."
        )
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"{label}: {index} lists {missing}, which are not in {index.parent}."
            " Download the checkpoint again."
        )
    return files


def read_header(file: Path, label: str) -> dict[str, TensorSpec]:
    """Tensor name -> shape and dtype, from one file.

    Raises:
        ValueError: Not a safetensors file, or a dtype that torch lacks.
    """
    specs = {}
    with file.open("rb") as stream:  # a mapping would read megabytes behind the header
        stream.read(_HEADER_BYTES)
    try:
        opened = safe_open(str(file), framework="pt")
    except SafetensorError as error:
        raise ValueError(
            f"{label}: {file} is not a safetensors file ({error}). Download or save it"
            " again; a git-lfs pointer needs `git lfs pull`."
        ) from error
    with opened as handle:
        for name in handle.keys():
            view = handle.get_slice(name)
            if view.get_dtype() not in _DTYPES:
                raise ValueError(
                    f"{label}: tensor '{name}' in {file} has dtype {view.get_dtype()},"
                    f" known are {sorted(_DTYPES)}."
                )
            specs[name] = TensorSpec(tuple(view.get_shape()), _DTYPES[view.get_dtype()])
    return specs


def file_digest(file: Path) -> str:
    """A hash of all that a file holds."""
    digest = hashlib.blake2b(digest_size=32)
    with file.open("rb", buffering=0) as stream:
        while content := stream.read(2**22):
            digest.update(content)
    return digest.hexdigest()


def data_starts(file: Path) -> dict[str, int]:
    """Where in the file each tensor starts, in bytes."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return {name: 8 + length + t["data_offsets"][0] for name, t in header.items()}
