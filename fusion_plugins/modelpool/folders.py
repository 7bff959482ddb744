"""Model folders: a pool of plain ones, and loading that accounts for every tensor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import transformers
from fusion_bench.modelpool import BaseModelPool
from hydra.errors import InstantiationException
from torch import nn

from ..common import get_logger
from ..common.folders import require_names
from ..common.upstream import models_of
from ..task_vectors import SafetensorsCheckpoint, files
from ..task_vectors.files import UNMADE, UNREADABLE, one_line, require_plain_weights
from ..task_vectors.names import unplaced_names
from . import load_exactly, refuse_incomplete, require_numbers, stored_tensors

log = get_logger(__name__)
_UNREADABLE: tuple[type[Exception], ...] = (*UNREADABLE, InstantiationException)
ADAPTER_CONFIG = "adapter_config.json"  # a folder with it holds a LoRA adapter
_OWN = {"OpenCLIPImageEncoder": ".openclip"}  # what transformers lacks -> where it is
HeadSite = Callable[[nn.Module], "str | None"]
# What transformers then reads are other files than a folder's usual ones.
_OTHER_FILES = ("variant", "subfolder", "gguf_file", "state_dict")
_LOADING = threading.RLock()  # transformers is changed for one thread at a time
_QUANTISED = ("quantization_config", "load_in_8bit", "load_in_4bit")


class FolderModelPool(BaseModelPool):
    """Models given as folder paths; each loads as the class its ``config.json`` names.

    Those are transformers' classes, and the image encoder of OpenCLIP pools.
    """

    def load_model(self, model_name_or_config: str, *args: Any, **kwargs: Any) -> Any:
        config = models_of(self).get(model_name_or_config)
        if not isinstance(config, str):
            return super().load_model(model_name_or_config, *args, **kwargs)
        return _model_class(Path(config)).from_pretrained(config, *args, **kwargs)


def _model_class(folder: Path) -> Any:
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ValueError(
            f"{folder} is not a HuggingFace model folder: it has no config.json. Save the"
            " model with model.save_pretrained(folder), or pass modules instead."
        )
    names = files.read_config(config_file, "its config").get("architectures") or []
    for name in names:
        if name in _OWN:
            return getattr(import_module(_OWN[name], __package__), name)
        found = getattr(transformers, name, None) if isinstance(name, str) else None
        if hasattr(found, "from_pretrained"):
            return found
    raise ValueError(
        f"{config_file} names the architectures {names}, none of which transformers"
        f" {transformers.__version__} has. Pass modules instead of folders."
    )


def check_names(pool: BaseModelPool) -> None:
    """Raise TypeError unless a pool's names are text; say which are no experts'."""
    require_names(pool.all_model_names)
    for name in {*pool.all_model_names} - {*pool.model_names, "_pretrained_"}:
        _say_left_out(name)


@cache  # a run asks several times
def _say_left_out(name: str) -> None:
    log.warning(
        "The model '%s' is left out: to FusionBench, names that start and end with '_' are"
        " of no experts. If it is one, rename it.",
        name,
    )


def source_of(config: object) -> str | None:
    """The folder or hub name in a pool's model config, if it says one."""
    if isinstance(config, Mapping):
        config = config.get("pretrained_model_name_or_path", config.get("config_path"))
    return config if isinstance(config, str) else None


@contextmanager
def without_warnings() -> Iterator[None]:
    """Transformers, which warns of names that fit in the end, only says errors."""
    said = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(said)


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
    with _LOADING, without_warnings():
        yield from _accounted(label, head_site, new_head)


def _accounted(
    label: str, head_site: HeadSite | None, new_head: bool
) -> Iterator[None]:
    load = transformers.PreTrainedModel.__dict__["from_pretrained"]
    thread = threading.get_ident()

    def checked(
        cls: type, pretrained_model_name_or_path: Any, *args: Any, **options: Any
    ) -> Any:
        path, load_it = pretrained_model_name_or_path, load.__get__(None, cls)
        if threading.get_ident() != thread:  # nothing of ours
            return load_it(path, *args, **options)
        with_info = options.pop("output_loading_info", False)
        stored = _stored(path, options, label)
        model, info, complete = _read(
            partial(load_it, path, *args, **options), path, label
        )
        head = _new_prefix(model, head_site)
        _complete(model, info, label, path, head, new_head and complete)
        if stored is not None:
            require_numbers(model, stored)
        return (model, info) if with_info else model

    transformers.PreTrainedModel.from_pretrained = classmethod(checked)
    try:
        yield
    except _UNREADABLE as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if isinstance(cause, KeyError | TypeError) or not isinstance(cause, UNREADABLE):
            raise
        named = str(cause).startswith(label)
        raise ValueError(f"{'' if named else label + ': '}{one_line(cause)}") from error
    finally:
        transformers.PreTrainedModel.from_pretrained = load


def _stored(
    path: Any, options: Mapping[str, Any], label: str
) -> SafetensorsCheckpoint | None:
    others = options.get("use_safetensors", True) is False
    if others or any(options.get(name) for name in _OTHER_FILES):
        return None
    local = path is not None and Path(path).is_dir()
    return stored_tensors(Path(path), label) if local else None


def _read(
    read: partial, path: str | Path, label: str
) -> tuple[nn.Module, Mapping[str, Any], bool]:
    """The model, what transformers says of it, and whether all shapes were right."""
    quantised = [name for name in _QUANTISED if read.keywords.get(name)]
    if quantised:
        raise ValueError(
            f"{label} is loaded with {quantised[0]}: quantised weights cannot be merged."
            " Leave the option out."
        )
    folder = Path(path) if path is not None and Path(path).is_dir() else None
    if folder is not None:
        require_plain_weights(folder, label)
    try:
        return *read(output_loading_info=True), True
    except UNMADE as error:
        if folder is not None:
            files.read_folder(folder, label)  # names the file that is damaged
        if "mismatch" not in str(error):
            raise ValueError(f"{path} cannot be loaded: {one_line(error)}") from error
    # Once more, to name all tensors whose shapes are wrong.
    return *read(output_loading_info=True, ignore_mismatched_sizes=True), False


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
    wrong = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    wrong |= set(info["missing_keys"])
    state = model.state_dict()  # which has an order
    absent = [n for n in state if n in wrong and state[n].is_floating_point()]
    if new_head and head is not None:
        absent = [name for name in absent if not name.startswith(head)]
    extra = unplaced_names(model, sorted(info["unexpected_keys"]))
    if not absent and not extra:
        return
    if not Path(path).is_dir():
        refuse_incomplete(model, label, path, absent, extra, head)
    load_exactly(
        model, files.read_folder(Path(path), label), label, path, head, new_head
    )
