"""The merged files as a module that costs no memory until its weights are used."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from ..common import get_logger
from ..common.upstream import with_methods
from .folders import model_class

log = get_logger(__name__)


def load_mapped(
    folder: Path, options: Mapping, causal: bool = False
) -> PreTrainedModel:
    """The model in a folder, its weights mapped from the files.

    A weight takes memory once it is touched, and the system may take that back. Saving
    the model into the same folder does nothing: writing into the files would pull the
    weights from under the model.

    Args:
        folder: Config and safetensors.
        options: Further ones of ``from_pretrained``.
        causal: As for :func:`~.folders.model_class`.
    """
    loaded = model_class(AutoConfig.from_pretrained(str(folder), **options), causal)
    load = partial(loaded.from_pretrained, str(folder), torch_dtype="auto", **options)
    module = load()
    save = type(module).save_pretrained

    def save_elsewhere(
        mapped: PreTrainedModel, save_directory: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if Path(save_directory).resolve() != folder.resolve():
            return save(mapped, save_directory, *args, **kwargs)
        _require_unchanged(mapped, load(), folder)
        log.info("The merged model is in %s already.", folder)

    return with_methods(module, save_pretrained=save_elsewhere).eval()


def _require_unchanged(
    module: PreTrainedModel, again: PreTrainedModel, folder: Path
) -> None:
    """Raise ValueError if the module's weights are no longer those of the files."""
    held, stored = module.state_dict(), again.state_dict()
    for name in {**held, **stored}:
        same = name in held and name in stored
        if not same or not _equal(held[name], stored[name]):
            raise ValueError(
                f"'{name}' is no longer as it was merged into {folder}. Save the"
                " changed model to another folder: its weights are mapped from the"
                " files in this one."
            )


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    return ours.dtype == theirs.dtype and torch.equal(ours.cpu(), theirs)
