"""Files of a tinted model's trunk: a transformers folder, or bare safetensors."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from ..modelpool.folders import FolderModelPool

_WEIGHTS = "model.safetensors"


def save_trunk(trunk: nn.Module, folder: Path, **kwargs: Any) -> None:
    """Write the trunk as its class does, or as one safetensors file.

    Args:
        trunk: A plain module.
        folder: Exists already.
        **kwargs: For the trunk's own save_pretrained.
    """
    save = getattr(trunk, "save_pretrained", None)
    if save is not None:
        save(folder, **kwargs)
    else:
        save_model(trunk, str(folder / _WEIGHTS))


def load_trunk(folder: Path, trunk: nn.Module | None = None) -> nn.Module:
    """Read what :func:`save_trunk` wrote.

    Args:
        folder: The tinted model's folder.
        trunk: A module to copy and fill; None to build the class that ``config.json`` names.

    Raises:
        ValueError: There is no ``config.json`` and no module, or it does not fit.
    """
    if trunk is None and (folder / "config.json").is_file():
        pool = FolderModelPool({"_pretrained_": str(folder)})
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
            f"{folder / _WEIGHTS} does not fit a {type(trunk).__name__}: {error}"
        ) from error
    return trunk
