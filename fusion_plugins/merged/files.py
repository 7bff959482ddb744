"""Files of a tinted model: its trunk as a model folder, one file per task, an index."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from ..common.upstream import options_of
from ..modelpool.folders import FolderModelPool, accounted
from ..task_vectors.files import one_line
from .heads import ClassificationHead
from .replacing import CONFIG, INDEX, TINTS, TRUNK
from .sites import Site, file_name, fitting_copy, linear_shape, trainable_copy

_WEIGHTS = "model.safetensors"
_FORMATS = (1, 2)  # the first has the trunk's files beside the index
# What transformers says of a folder that it cannot load; the trunk alone has no tints.
_HOME = __name__.partition(".")[0]
_NOT_ALONE = f"tinted model, load it with {_HOME}.TintedModel.from_pretrained"


def save_trunk(trunk: nn.Module, folder: Path, **kwargs: Any) -> None:
    """Write the trunk as its class does, or as one safetensors file.

    The folder is the tinted model's; transformers alone cannot load it.
    """
    config = {"model_type": _NOT_ALONE, "architectures": ["TintedModel"]}
    (folder / CONFIG).write_text(json.dumps(config, indent=2))
    folder = folder / TRUNK
    folder.mkdir(exist_ok=True)
    save = getattr(trunk, "save_pretrained", None)
    if save is not None:
        save(folder, **kwargs)
    else:
        save_model(trunk, str(folder / _WEIGHTS))


def load_trunk(
    folder: Path, index: Mapping[str, Any], trunk: nn.Module | None = None
) -> nn.Module:
    """Read what :func:`save_trunk` wrote, into a copy of `trunk` if one is given."""
    folder = folder if index["format"] == _FORMATS[0] else folder / TRUNK
    if trunk is None and (folder / CONFIG).is_file():
        pool = FolderModelPool({"_pretrained_": str(folder)})
        with accounted(f"The trunk in {folder}"):
            return pool.load_model("_pretrained_")
    if trunk is None:
        raise ValueError(
            f"{folder} has no config.json that says what class its trunk is. Give a module"
            " of its architecture, such as the pool's pretrained model:"
            " from_pretrained(folder, trunk=module)."
        )
    trunk = deepcopy(trunk)
    try:
        load_model(trunk, str(folder / _WEIGHTS))
    except (RuntimeError, SafetensorError, FileNotFoundError) as error:
        raise ValueError(
            f"{folder / _WEIGHTS} does not fit a {type(trunk).__name__}:"
            f" {one_line(error)}"
        ) from error
    return trunk


def save_tints(
    folder: Path,
    places: Sequence[str],
    tints: Mapping[str, Mapping[str, Tensor]],
    parameters: Mapping[str, object],
) -> None:
    """Write one file per task, tensors named ``<site>/<tensor>``, and the index last."""
    (folder / TINTS).mkdir(exist_ok=True)
    for task, tensors in tints.items():
        save_file(dict(tensors), _tint_file(folder, task))
    index = {"format": _FORMATS[-1], "sites": list(places), "tasks": list(tints)}
    text = json.dumps(index | {"parameters": parameters}, indent=2)
    (folder / INDEX).write_text(text)


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a tinted model, or ValueError."""
    path = folder / INDEX
    if not path.is_file():
        raise ValueError(
            f"{folder} is not a tinted model: it has no {INDEX}. Give a folder written by"
            " TintedModel.save_pretrained."
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        version = index["format"]
        known = version not in _FORMATS or all(
            map(_is_names, (index["sites"], index["tasks"]))
        )
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise ValueError(f"{path} is damaged. Copy the folder again, or save it anew.")
    if version not in _FORMATS:
        raise ValueError(
            f"{path} has format {version}, this version reads {list(_FORMATS)}. Update the"
            " package."
        )
    return index


def _is_names(value: Any) -> bool:
    names = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return names and bool(value)


def _tint_file(folder: Path, task: str) -> Path:
    return folder / TINTS / f"{file_name(task)}.safetensors"


def read_tint(folder: Path, task: str, places: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of one task, or ValueError."""
    path = _tint_file(folder, task)
    if not path.is_file():
        raise ValueError(
            f"{folder}/{INDEX} lists the task '{task}', but there is no {path}. Copy the"
            " whole folder, or give tasks=[...] without it."
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}). Copy it again.") from error
    for site in places:
        if not site_state(tensors, site):
            raise ValueError(f"{path} holds no tensors of '{site}'. Save it again.")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.float().isnan().any():
            raise ValueError(f"{path}: '{name}' holds NaN. Copy or save it again.")
    return tensors


def site_state(tensors: Mapping[str, Tensor], site: str) -> dict[str, Tensor]:
    """The tensors of one site, under the layer's own names."""
    prefix = f"{site}/"
    return {
        n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)
    }


def check_layers(
    trunk: nn.Module, places: Sequence[Site], switches: Iterable[nn.Module]
) -> None:
    """Raise ValueError unless :func:`layer_of` can read all layers again.

    Args:
        trunk: With its own layers at the tinted places.
        places: Where the layers are.
        switches: Those of the tasks, at each place.
    """
    for site, switch in zip(places, switches, strict=True):
        plain = trunk.get_submodule(site) if site.in_trunk else None
        for task, layer in options_of(switch).items():
            problem = None
            if not layer.state_dict():
                problem = "has no tensors"
            elif plain is not None and _form(layer, plain) != _form(plain, plain):
                problem = "differs from the trunk's in more than sizes of linear layers"
            if problem:
                raise ValueError(
                    f"the layer at '{site}' of the task '{task}' {problem}, so that it"
                    " could not be loaded again. Tint it with layers like the trunk's."
                )


def _form(layer: nn.Module, plain: nn.Module) -> dict[str, Any]:
    """Shapes of a layer's tensors, as far as :func:`fitting_copy` cannot change them."""
    linear = {n for n, part in plain.named_modules() if isinstance(part, nn.Linear)}
    form: dict[str, Any] = {}
    for name, tensor in layer.state_dict().items():
        owner, _, own = name.rpartition(".")
        if owner not in linear:
            form[name] = tensor.shape
        elif own != "bias":
            form[name] = tensor.dim()
    return form


def layer_of(
    trunk: nn.Module,
    site: Site,
    state: Mapping[str, Tensor],
    head: nn.Module | None,
    task: str,
) -> nn.Module:
    """A task's layer, filled; a head as a copy of the given one, or else linear."""
    given = head if site.is_head else None
    if site.is_head and head is None and "weight" not in state:
        raise ValueError(
            f"The tinted heads are not linear: they hold {list(state)[:3]}. Give modules"
            " of their architecture: from_pretrained(folder, heads={task: module})."
        )
    try:
        return _filled(trunk, site, state, given)
    except (AttributeError, KeyError, RuntimeError, ValueError) as error:
        option, kind = ("trunk", trunk) if given is None else ("heads", given)
        raise ValueError(
            f"{INDEX}: the tensors of '{site}' do not fit a {type(kind).__name__}, in the"
            f" tint of '{task}': {one_line(error)}. Give the {option} they were saved with."
        ) from error


def _filled(
    trunk: nn.Module, site: Site, state: Mapping[str, Tensor], head: nn.Module | None
) -> nn.Module:
    if head is not None:
        layer = trainable_copy(head)
    elif site.in_trunk:
        layer = fitting_copy(trunk.get_submodule(site), state)
    else:  # the heads and layers that pools apply after the trunk are linear
        classes, features = linear_shape(state["weight"])
        if site.is_head:
            return ClassificationHead(state["weight"], state.get("bias"))
        layer = nn.Linear(features, classes, bias="bias" in state)
    layer.load_state_dict(dict(state))
    return layer
