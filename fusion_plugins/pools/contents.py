"""What a data set stores, read without decoding a sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset as ArrowDataset
from torch.utils.data import Subset, TensorDataset

from ..common.identity import file_fingerprint, fingerprint

_ROWS = 1000  # at once


def stored_contents(raw: Any) -> str | None:
    """A short name that changes with any sample, or None where only reading would tell.

    Args:
        raw: A data set of the library `datasets`, a list, tensors, or one that says so
            itself by a method `contents`. Pictures that are files count by their bytes.
    """
    try:
        if isinstance(raw, Subset):
            inner = stored_contents(raw.dataset)
            return inner and fingerprint(inner, list(raw.indices))
        if isinstance(raw, ArrowDataset):
            if raw.format["type"] == "custom":  # a transform may draw lots
                return None
            modes = {name: getattr(f, "mode", None) for name, f in raw.features.items()}
            modes = {name: mode for name, mode in modes.items() if mode is not None}
            return fingerprint(_rows(raw), *([modes] if modes else []))
        if isinstance(raw, TensorDataset):
            return fingerprint(raw.tensors)
        if isinstance(raw, (list, tuple)):
            return fingerprint(raw)
        return raw.contents() if hasattr(raw, "contents") else None
    except (TypeError, OSError):  # of other values, or in an archive
        return None


def _rows(raw: ArrowDataset) -> list[str]:
    """Of each block of rows."""
    blocks = raw.with_format("arrow").iter(_ROWS)
    return [fingerprint([_with_files(r) for r in b.to_pylist()]) for b in blocks]


def _with_files(value: Any) -> Any:
    """A stored value, with a picture's or a sound's file in the place of its path."""
    if isinstance(value, Mapping):
        if value.keys() == {"bytes", "path"} and value["bytes"] is None:
            return file_fingerprint(value["path"])
        return {name: _with_files(entry) for name, entry in value.items()}
    return [_with_files(v) for v in value] if isinstance(value, list) else value
