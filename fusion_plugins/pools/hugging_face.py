"""Loading transformers models of a pool: their files, and whether they have a head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fusion_bench.modelpool import BaseModelPool
from fusion_bench.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

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
    config = modelpool._models[name]
    if type(modelpool) is not kind or not is_from_pretrained(config):
        return None
    if set(config) != _FORM or getattr(modelpool, "_model_kwargs", None):
        return None  # such as a dtype to convert to
    path = Path(config["pretrained_model_name_or_path"])
    return path if path.is_dir() else None


def load_with_head(config, task: str, site: str, **options) -> nn.Module:
    """A model from its config, refusing a head that transformers made up.

    Args:
        config: As :func:`is_from_pretrained` knows it.
        task: The expert's name, for the message.
        site: Where its head is.
        **options: More arguments of from_pretrained.

    Raises:
        ValueError: The files have no weights for the head.
    """
    config = OmegaConf.create(dict(config))
    model, info = instantiate(config, output_loading_info=True, **options)
    missing = [key for key in info["missing_keys"] if key.startswith(f"{site}.")]
    if missing:
        raise ValueError(
            f"expert '{task}' has no trained head: the files of"
            f" {config.pretrained_model_name_or_path} lack {missing}. Give the checkpoint"
            " that was saved with its classifier."
        )
    return model
