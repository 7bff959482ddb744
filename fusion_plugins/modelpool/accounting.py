"""Every tensor is accounted for while a model is loaded: it is right, or refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..common.logging import get_logger
from ..task_vectors.checkpoint import refuse_quantised
from ..task_vectors.checks import shown
from ..task_vectors.files import read_header, safetensors_files
from .names import base_prefix, fitted_names, missing_names, unplaced_names

log = get_logger(__name__)

HeadSite = Callable[[nn.Module], "str | None"]
_UNREADABLE = (EOFError, OSError, RuntimeError, ValueError, SafetensorError)
_UNREADABLE += (KeyError, TypeError, pickle.UnpicklingError)
_QUANTISED = ("quantization_config", "load_in_8bit", "load_in_4bit")


@contextmanager
def accounted(
    label: str, head_site: HeadSite | None = None, new_head: bool = False
) -> Iterator[None]:
    """For a while, what transformers loads holds the values of its files, all of them.

    Left alone it fills in random weights for tensors that the files lack, and says so in
    a log line at most. Errors of other kinds come out as one line that names the model.

    Args:
        label: What error messages call the model.
        head_site: Where a module has its classification head.
        new_head: The head may be new: other models bring theirs.

    Raises:
        ValueError: Tensors are missing, have no place, are of other shapes or quantised,
            or a file is damaged.
    """
    load = PreTrainedModel.__dict__["from_pretrained"]

    def checked(cls, pretrained_model_name_or_path, *args, **options):
        path = pretrained_model_name_or_path
        with_info = options.pop("output_loading_info", False)
        options_given = [name for name in _QUANTISED if options.get(name)]
        if options_given:
            raise ValueError(
                f"{label} is loaded with {options_given[0]}: quantised weights cannot be"
                " merged. Leave the option out."
            )
        folder = Path(path) if path is not None and Path(path).is_dir() else None
        if folder is not None:
            refuse_quantised(folder, label)
        try:
            model, info = load.__get__(None, cls)(
                path, *args, output_loading_info=True, **options
            )
        except _UNREADABLE as error:
            if folder is not None:
                read_folder(folder, label)  # names the file that is damaged
            raise ValueError(f"{path} cannot be loaded: {one_line(error)}") from error
        _complete(model, info, label, path, _new_prefix(model, head_site), new_head)
        return (model, info) if with_info else model

    PreTrainedModel.from_pretrained = classmethod(checked)
    try:
        yield
    except (*_UNREADABLE, InstantiationException) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if str(cause).startswith(label):
            raise cause from None
        if not isinstance(cause, _UNREADABLE) or isinstance(cause, (KeyError, TypeError)):
            raise
        raise ValueError(f"{label}: {one_line(cause)}") from error
    finally:
        PreTrainedModel.from_pretrained = load


def one_line(error: BaseException) -> str:
    """An error's text, or its kind if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _new_prefix(model: nn.Module, head_site: HeadSite | None) -> str | None:
    try:
        site = None if head_site is None else head_site(model)
    except ValueError:  # the model has no head
        return None
    return None if site is None else f"{site}."


def _complete(
    model: nn.Module,
    info: Mapping[str, Any],
    label: str,
    path: str | Path,
    head: str | None,
    new_head: bool,
) -> None:
    """Load once more, by fitted names, what transformers has not found."""
    wrong = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    state = model.state_dict()
    absent = [*info["missing_keys"], *wrong]
    absent = [n for n in absent if n in state and state[n].is_floating_point()]
    if new_head and head is not None:
        absent = [name for name in absent if not name.startswith(head)]
    extra = unplaced_names(model, info["unexpected_keys"])
    if not absent and not extra:
        return
    if not Path(path).is_dir():
        refuse_incomplete(model, label, path, absent, extra, head)
    load_exactly(model, read_folder(Path(path), label), label, path, head, new_head)


def load_exactly(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    label: str,
    source: str | Path,
    head: str | None = None,
    new_head: bool = False,
) -> None:
    """Fill a module with a checkpoint's tensors, known prefixes taken off.

    Args:
        module: Is changed; on the meta device it is only compared.
        tensors: All that the checkpoint holds.
        label: What error messages call the model.
        source: Where the tensors come from.
        head: What the names of the module's head start with.
        new_head: The head may be missing.

    Raises:
        ValueError: Tensors are missing, have no place, or are of other shapes.
    """
    state, prefix = module.state_dict(), base_prefix(module)
    names = fitted_names(tensors, state, ("vision_model.", prefix))
    left = set(tensors) - set(names.values())
    absent = missing_names(module, names)
    absent += [n for n, stored in names.items() if tensors[stored].shape != state[n].shape]
    if new_head and head is not None:
        absent = [name for name in absent if not name.startswith(head)]
    extra = unplaced_names(module, [name for name in tensors if name in left])
    if absent or extra:
        refuse_incomplete(module, label, source, absent, extra, head)
    renamed = next(((n, s) for n, s in names.items() if n != s), None)
    if renamed is not None:
        log.info(
            "%s: names in %s differ by a known prefix; '%s' is loaded as '%s', and so on.",
            *(label, source, renamed[1], renamed[0]),
        )
    if not any(tensor.is_meta for tensor in state.values()):
        given = {n: tensors[s] for n, s in names.items()}
        module.load_state_dict(given, strict=False)


def refuse_incomplete(
    module: nn.Module,
    label: str,
    source: str | Path,
    absent: list[str],
    extra: list[str],
    head: str | None,
) -> None:
    """Say which tensors are missing or left over.

    Raises:
        ValueError: Always.
    """
    if absent and head is not None and all(n.startswith(head) for n in absent):
        raise ValueError(
            f"{label} has no trained head: the files of {source} lack {absent}. Give the"
            " checkpoint that was saved with its classifier."
        )
    found = [f"lack {len(absent)} tensor(s) of its size: {shown(absent)}"] * bool(absent)
    found += [f"hold {len(extra)} tensor(s) without a place: {shown(extra)}"] * bool(extra)
    raise ValueError(
        f"{label}: for a {type(module).__name__}, the files of {source}"
        f" {' and '.join(found)}. Save the model again with its own class's"
        " save_pretrained, or give the checkpoint it was made from."
    )


def read_folder(folder: Path, label: str) -> dict[str, Tensor]:
    """All tensors of a model folder, as stored.

    Raises:
        ValueError: A file is damaged or missing.
    """
    for index in folder.glob("*.index.json"):
        try:
            json.loads(index.read_bytes())["weight_map"]
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"{label}: {index} is damaged or not an index of shards, it has no"
                " weight_map. Download or save it again; a git-lfs pointer needs `git lfs"
                " pull`."
            ) from error
    files = sorted(folder.glob("pytorch_model*.bin"))
    if any(folder.glob("*.safetensors")) or not files:
        files = safetensors_files(folder, label)
    return {k: v for file in files for k, v in read_tensors(file, label).items()}


def read_tensors(file: Path, label: str) -> dict[str, Tensor]:
    """A file's tensors: safetensors, or a state dict written by torch.save.

    Raises:
        ValueError: It is missing, damaged, or holds something else.
    """
    if file.suffix == ".safetensors" and file.is_file():
        read_header(file, label)
        return load_file(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ValueError(
            f"{label}: {file} is missing, truncated or no state dict written by torch.save"
            f" ({one_line(error)[:200]}). Download or save it again; a git-lfs pointer"
            " needs `git lfs pull`."
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise ValueError(f"{label}: {file} holds a {type(content).__name__}, not tensors.")
    return {name: t for name, t in content.items() if isinstance(t, Tensor)}
