"""The merged files as a module that costs no memory until its weights are used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from ..common import get_logger
from ..common.upstream import with_methods
from ..task_vectors import SafetensorsCheckpoint
from ..task_vectors.blocks import row_slices
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
    module = loaded.from_pretrained(str(folder), torch_dtype="auto", **options)
    save = type(module).save_pretrained

    def save_elsewhere(
        mapped: PreTrainedModel, save_directory: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if Path(save_directory).resolve() != folder.resolve():
            return save(mapped, save_directory, *args, **kwargs)
        _require_unchanged(mapped, folder)
        log.info("The merged model is in %s already.", folder)

    return with_methods(module, save_pretrained=save_elsewhere).eval()


def _require_unchanged(module: PreTrainedModel, folder: Path) -> None:
    """Raise ValueError if the module's weights are no longer those of the files."""
    files = SafetensorsCheckpoint(folder, "the merged model")
    held = module.state_dict()
    for name, spec in files.specs.items():
        tensor = held[name]
        same = tuple(tensor.shape) == spec.shape and tensor.dtype == spec.dtype
        for rows in row_slices(spec.shape):
            part = None if len(spec.shape) < 2 else rows
            ours = tensor if part is None else tensor[part]
            if not same or not torch.equal(ours.cpu(), files.read(name, part)):
                raise ValueError(
                    f"'{name}' is no longer as it was merged into {folder}. Save the"
                    " changed model to another folder: its weights are mapped from the"
                    " files in this one."
                )
