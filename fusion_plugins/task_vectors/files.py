"""What safetensors files hold, and where, without reading a tensor."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import errors
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..common import get_logger

log = get_logger(__name__)

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
# What reading a damaged file may raise; not every huggingface_hub checks configs.
UNREADABLE: tuple[type[Exception], ...] = (
    *(EOFError, KeyError, OSError, RuntimeError, TypeError, ValueError),
    *(SafetensorError, pickle.UnpicklingError),
    getattr(errors, "StrictDataclassError", ValueError),
)
# What making a model's class from its config may raise too, as for a dtype torch lacks.
UNMADE: tuple[type[Exception], ...] = (*UNREADABLE, AttributeError)
DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_DOWNLOAD_AGAIN = "Download or save it again; a git-lfs pointer needs `git lfs pull`."


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
    # Mistral's models have the same weights in a second form, which transformers passes over.
    indices = [i for i in indices if not i.match("consolidated.*")] or indices
    if len(indices) == 1:
        return _indexed_files(indices[0], label)
    held = sorted(p.name for p in path.iterdir()) if path.is_dir() else [path.name]
    raise ValueError(
        f"{label}: expected model.safetensors or one *.safetensors.index.json in {path},"
        f" found {held[:8]}. Convert pickles once with"
        " model.save_pretrained(folder, safe_serialization=True)."
    )


def _indexed_files(index: Path, label: str) -> list[Path]:
    files = _listed_files(index, label)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"{label}: {index} lists {missing}, which are not in {index.parent}."
            f" {_DOWNLOAD_AGAIN}"
        )
    return files


def _listed_files(index: Path, label: str) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if not names:
            raise LookupError("weight_map")
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{label}: {index} is damaged or not an index of shards, it has no weight_map."
            f" {_DOWNLOAD_AGAIN}"
        ) from error
    if outside:
        raise ValueError(
            f"{label}: {index} names {outside[0]!r}, which is not in its own folder. Put"
            " the file beside the index and correct its name there, if you trust it."
        )
    return [index.parent / name for name in names]


def read_header(file: Path, label: str) -> dict[str, TensorSpec]:
    """Tensor name -> shape and dtype, from one file.

    Raises:
        ValueError: Not a safetensors file, or a dtype that torch lacks.
    """
    specs = {}
    with file.open("rb") as stream:  # a mapping would read megabytes behind the header
        stream.read(2**16)  # of most models; more is read as needed
    try:
        opened = safe_open(str(file), framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{label}: {file} is truncated or no safetensors file ({error})."
            f" {_DOWNLOAD_AGAIN}"
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


def data_starts(file: Path) -> dict[str, int]:
    """Where in the file each tensor starts, in bytes."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return {name: 8 + length + t["data_offsets"][0] for name, t in header.items()}


def one_line(error: BaseException) -> str:
    """An error's text, or its kind if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def read_folder(folder: Path, label: str) -> dict[str, Tensor]:
    """All tensors of a model folder; raises ValueError if a file is damaged or missing."""
    whole = (folder / "model.safetensors").is_file()  # then nobody reads an index
    for index in () if whole else folder.glob("*model.*.index.json"):
        _indexed_files(index, label)
    files = sorted(folder.glob("pytorch_model*.bin"))
    if any(folder.glob("*.safetensors")) or not files:
        files = safetensors_files(folder, label)
    return {k: v for file in files for k, v in read_tensors(file, label).items()}


def read_tensors(file: Path, label: str) -> dict[str, Tensor]:
    """A file's tensors: safetensors, or a state dict written by torch.save.

    Raises:
        ValueError: It is missing, damaged, or holds something else.
    """
    if not file.is_file():
        raise ValueError(f"{label}: there is no file {file}.")
    if file.suffix == ".safetensors":
        read_header(file, label)
        return load_file(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ValueError(
            f"{label}: {file} is truncated or no state dict written by torch.save"
            f" ({one_line(error)[:200]}). {_DOWNLOAD_AGAIN}"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise ValueError(f"{label}: {file} is a {type(content).__name__}, not tensors.")
    return {name: t for name, t in content.items() if isinstance(t, Tensor)}


def require_plain_weights(source: object, label: str) -> None:
    """Refuse a model whose weights are codes that mean nothing without scales.

    Args:
        source: A folder, for what its ``config.json`` and file names say, or a model.
        label: What error messages call the model.

    Raises:
        ValueError: It is quantised, its config is damaged, or it has two sets of weights.
    """
    if isinstance(source, Path):
        _refuse_two_sets(source, label)
        file, where = source / "config.json", str(source)
        settings = read_config(file, label) if file.is_file() else {}
        found = settings.get("quantization_config")
    else:
        config = getattr(source, "config", None)
        found = getattr(config, "quantization_config", None)
        where = f"the {type(source).__name__} in memory"
    if found:
        method = found.get("quant_method") if isinstance(found, dict) else None
        raise ValueError(
            f"{label}: {where} is quantised ({method or type(found).__name__}). Such"
            " weights cannot be merged: give the model it was made from, or dequantise it"
            " and save it in bfloat16."
        )


def _refuse_two_sets(folder: Path, label: str) -> None:
    whole = folder / "model.safetensors"
    for index in folder.glob("model.*.index.json") if whole.is_file() else ():
        if any(file.is_file() for file in _listed_files(index, label)):
            raise ValueError(
                f"{label}: {folder} holds two sets of weights, {whole.name} and the shards"
                f" of {index.name}. Delete the one that is out of date."
            )
    for pickled in folder.glob("pytorch_model*.bin"):
        if whole.is_file() and _younger(pickled, whole):
            log.warning(
                "%s: in %s, %s is newer than %s, which is read. Was the model trained on?"
                " Then save it again with safe_serialization=True.",
                *(label, folder, pickled.name, whole.name),
            )


def _younger(first: Path, second: Path) -> bool:
    """By more than a download of both may take, where nobody has linked them."""
    times = (first.lstat().st_mtime, second.lstat().st_mtime)
    return times[0] - times[1] > 3600 and not first.is_symlink()


def read_config(file: Path, label: str) -> dict[str, Any]:
    """A model's ``config.json``; raises ValueError if it is damaged."""
    try:
        return dict(json.loads(file.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{label}: {file} is damaged ({error}). Download or save it again."
        ) from error
