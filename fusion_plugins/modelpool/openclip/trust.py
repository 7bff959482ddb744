"""Telling files that hold tensors alone from pickles, which need to be trusted."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...common.identity import file_digest
from .unpickle import Record, read_pickle, written_by_torch

SAFE_SUFFIX = ".safetensors"
SOURCE = "source"  # metadata of a converted file: bytes, time and hash of what it was


@dataclass(frozen=True)
class Content:
    """What is in a file.

    Attributes:
        tensors: By name.
        metadata: Of a safetensors file.
        record: The pickled module, if the file held a whole one.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    record: Record | None = None


def converted(path: str | Path) -> Path:
    """The safetensors file beside a file, if one was made from this version of it."""
    path = Path(path)
    beside = path.with_suffix(SAFE_SUFFIX)
    if not path.suffix or not beside.is_file():
        return path
    if path != beside and path.is_file() and not _made_from(beside, path):
        raise ValueError(
            f"{beside} was made from another version of {path.name}. Remove it, and convert"
            f" {path.name} again."
        )
    return beside


def _made_from(beside: Path, path: Path) -> bool:
    with _opened(beside) as file:
        known = (file.metadata() or {}).get(SOURCE)
    if known is None:  # not converted by us: only times can tell
        return beside.stat().st_mtime >= path.stat().st_mtime
    stat, (size, changed, digest) = path.stat(), json.loads(known)
    return size == stat.st_size and (
        changed == stat.st_mtime_ns or digest == file_digest(path)
    )


def source_metadata(path: Path) -> dict[str, str]:
    """What a converted file keeps of its source, to tell it from later versions."""
    stat = path.stat()
    known = [stat.st_size, stat.st_mtime_ns, file_digest(path)]
    return {SOURCE: json.dumps(known)}


def read(path: str | Path, trust_pickle: bool = False) -> Content:
    """Read safetensors, a state dict written by torch.save, or a trusted pickled module.

    Raises:
        ValueError: No such file, damaged, of another kind, or a pickle without
            `trust_pickle`; nothing of such a file is unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"There is no file {path}. Download the checkpoints, or set modelpool.model_dir"
            " to the folder that holds them."
        )
    if path.suffix == SAFE_SUFFIX:
        return _read_safetensors(path)
    tensors = _plain_tensors(path)
    if tensors is not None:
        return Content(tensors)
    if not trust_pickle:
        raise ValueError(
            f"{path} is not a plain state dict but a pickle of a whole module (or"
            " damaged). Pickles can run any code when they are loaded, so it was not read."
            " If you trust its source, convert it once:\n"
            f"  fusion-plugins convert {path} {path.with_suffix(SAFE_SUFFIX)}"
            " --trust-pickle\nThe file that this writes is found by itself then. Or set"
            " modelpool.trust_pickle=true (and taskpool.trust_pickle=true)."
        )
    content = read_pickle(path)
    if isinstance(content, Record) and "_modules" in content.__dict__:
        return Content(content.state_dict(), record=content)
    return Content(_state_dict(content, path))


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(str(path), framework="pt")
    except SafetensorError as error:
        raise ValueError(
            f"{path} is truncated or not a safetensors file: {error}. Save it again; a"
            " git-lfs pointer needs `git lfs pull`."
        ) from error


def _read_safetensors(path: Path) -> Content:
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        return Content(tensors, file.metadata() or {})


def _plain_tensors(path: Path) -> dict[str, Tensor] | None:
    """A state dict, or None for anything that torch does not read without trust."""
    if not written_by_torch(path):
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError):
        return None
    return _state_dict(content, path)


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    inner = content.get("state_dict") if isinstance(content, Mapping) else None
    tensors = content if inner is None else inner
    if not isinstance(tensors, Mapping) or not all(
        isinstance(value, Tensor) for value in tensors.values()
    ):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, not a state dict or a module."
        )
    return dict(tensors)
