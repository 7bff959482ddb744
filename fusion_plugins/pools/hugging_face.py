"""Where the transformers models of a pool come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fusion_bench.modelpool import BaseModelPool

from ..common.upstream import model_options_of, models_of

_FORM = {"_target_", "pretrained_model_name_or_path"}


def from_pretrained(kind: str, folder: str) -> dict[str, str]:
    """The config of what a transformers class loads from a folder."""
    target = {"_target_": f"{kind}.from_pretrained"}
    return target | {"pretrained_model_name_or_path": folder}


def is_from_pretrained(config: object) -> bool:
    """Whether a pool's model config asks a transformers class for a folder or hub name."""
    if not isinstance(config, Mapping):
        return False
    target = str(config.get("_target_", ""))
    return target.startswith("transformers.") and target.endswith(".from_pretrained")


def local_folder(
    modelpool: BaseModelPool, name: str, kind: type[BaseModelPool]
) -> Path | None:
    """The folder that a model is loaded from as it is; None where that is not certain.

    Args:
        modelpool: A pool; must load as a `kind` does; subclasses may not.
        name: The model.
        kind: The pool class whose loading is known.
    """
    config = models_of(modelpool)[name]
    if type(modelpool).load_model is not kind.load_model or not is_from_pretrained(
        config
    ):
        return None
    if set(config) != _FORM or model_options_of(modelpool, None):
        return None  # such as a dtype to convert to
    path = Path(config["pretrained_model_name_or_path"])
    return path if path.is_dir() else None
