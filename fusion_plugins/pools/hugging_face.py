"""Where the transformers models of a pool come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fusion_bench.modelpool import BaseModelPool

from ..common.upstream import model_options_of, models_of

_FORM = {"_target_", "pretrained_model_name_or_path"}


def is_from_pretrained(config: object) -> bool:
    """Whether a pool's model config asks a transformers class for a folder or hub name."""
    if not isinstance(config, Mapping):
        return False
    target = str(config.get("_target_", ""))
    return target.startswith("transformers.") and target.endswith(".from_pretrained")


def local_folder(modelpool: BaseModelPool, name: str, kind: type) -> Path | None:
    """The folder that a model is loaded from as it is; None where that is not certain.

    Args:
        modelpool: A pool; must be exactly a `kind`, since subclasses may load otherwise.
        name: The model.
        kind: The pool class whose loading is known.
    """
    config = models_of(modelpool)[name]
    if type(modelpool) is not kind or not is_from_pretrained(config):
        return None
    if set(config) != _FORM or model_options_of(modelpool, None):
        return None  # such as a dtype to convert to
    path = Path(config["pretrained_model_name_or_path"])
    return path if path.is_dir() else None
