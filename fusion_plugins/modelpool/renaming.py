"""What transformers calls stored tensors once they are loaded: 5.x renamed some parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import transformers
from torch import nn

from ..common.logging import get_logger

log = get_logger(__name__)
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


def say_renamed(names: Mapping[str, str], label: str, source: object) -> None:
    """Log that names in files differ from those in memory, if they do.

    Args:
        names: Name in memory -> name in the files.
        label: What messages call the model.
        source: Where the files are.
    """
    renamed = next(((n, s) for n, s in names.items() if n != s), None)
    if renamed is not None:
        log.info(
            "%s: names in %s differ by a known prefix; '%s' is loaded as '%s', and so on.",
            *(label, source, renamed[1], renamed[0]),
        )


def _changes(module: nn.Module) -> list[Any]:
    if not _NEW or not isinstance(module, transformers.PreTrainedModel):
        return []
    from transformers.conversion_mapping import get_model_conversion_mapping

    return get_model_conversion_mapping(module, add_legacy=False)
