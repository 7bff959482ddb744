"""What transformers calls stored tensors once they are loaded: 5.x renamed some parts."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import transformers
from torch import nn

_NEW = find_spec("transformers.conversion_mapping") is not None  # since 5.0


def renames(module: nn.Module) -> bool:
    """Whether the module's class has other names in files than in memory."""
    return bool(
        getattr(module, "_checkpoint_conversion_mapping", None) or _changes(module)
    )


def class_renaming(module: nn.Module) -> Callable[[str], str]:
    """What the module's class calls a stored tensor.

    Tensors that the class joins or splits keep their names.
    """
    changes = [c for c in _changes(module) if not hasattr(c, "operations")]

    def rename(name: str) -> str:
        for change in changes:
            name = change.rename_source_key(name)[0]
        return name

    return rename


def _changes(module: nn.Module) -> list[Any]:
    if not _NEW or not isinstance(module, transformers.PreTrainedModel):
        return []
    from transformers.conversion_mapping import get_model_conversion_mapping

    return get_model_conversion_mapping(module, add_legacy=False)
