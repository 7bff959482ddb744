"""Model folders: a pool of plain ones, and loading that accounts for every tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import transformers
from fusion_bench.modelpool import BaseModelPool
from hydra.errors import InstantiationException
from torch import Tensor, nn

from ..common import get_logger
from ..common.upstream import models_of
from ..task_vectors import files
from ..task_vectors.checks import shown
from ..task_vectors.files import UNREADABLE, one_line, require_plain_weights
from ..task_vectors.names import (
    TOWER,
    base_prefix,
    fitted_names,
    missing_names,
    say_renamed,
    unplaced_names,
)

log = get_logger(__name__)
_UNREADABLE: tuple[type[Exception], ...] = (*UNREADABLE, InstantiationException)
ADAPTER_CONFIG = "adapter_config.json"  # a folder with it holds a LoRA adapter
_OWN = {"OpenCLIPImageEncoder": ".openclip"}  # what transformers lacks -> where it is
HeadSite = Callable[[nn.Module], "str | None"]
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
        if hasattr(transformers, name):
            return getattr(transformers, name)
    raise ValueError(
        f"{config_file} names the architectures {names}, none of which transformers"
        f" {transformers.__version__} has. Pass modules instead of folders."
    )


def source_of(config: object) -> str | None:
    """The folder or hub name in a pool's model config, if it says one."""
    if isinstance(config, Mapping):
        config = config.get("pretrained_model_name_or_path", config.get("config_path"))
    return config if isinstance(config, str) else None


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
    load = transformers.PreTrainedModel.__dict__["from_pretrained"]

    def checked(
        cls: type, pretrained_model_name_or_path: Any, *args: Any, **options: Any
    ) -> Any:
        path = pretrained_model_name_or_path
        with_info = options.pop("output_loading_info", False)
        model, info, complete = _read(
            partial(load.__get__(None, cls), path, *args, **options), path, label
        )
        head = _new_prefix(model, head_site)
        _complete(model, info, label, path, head, new_head and complete)
        return (model, info) if with_info else model

    transformers.PreTrainedModel.from_pretrained = classmethod(checked)
    said = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it warns of names that fit in the end
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
        transformers.logging.set_verbosity(said)


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
    except UNREADABLE as error:
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
    names = fitted_names(tensors, state, (TOWER, prefix), module)
    left = set(tensors) - set(names.values())
    absent = missing_names(module, names)
    absent += [
        n for n, stored in names.items() if tensors[stored].shape != state[n].shape
    ]
    if new_head and head is not None:
        absent = [name for name in absent if not name.startswith(head)]
    extra = unplaced_names(module, [name for name in tensors if name in left])
    if absent or extra:
        refuse_incomplete(module, label, source, absent, extra, head)
    say_renamed(names, label, source)
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
    """Raise ValueError: which tensors are missing or left over."""
    if absent and head is not None and all(n.startswith(head) for n in absent):
        raise ValueError(
            f"{label} has no trained head: the files of {source} lack {absent}. Give the"
            " checkpoint that was saved with its classifier."
        )
    found = []
    if absent:
        found.append(f"lack {len(absent)} tensor(s) of its size: {shown(absent)}")
    if extra:
        found.append(f"hold {len(extra)} tensor(s) without a place: {shown(extra)}")
    raise ValueError(
        f"{label}: for a {type(module).__name__}, the files of {source}"
        f" {' and '.join(found)}. Save the model again with its own class's"
        " save_pretrained, or give the checkpoint it was made from."
    )
