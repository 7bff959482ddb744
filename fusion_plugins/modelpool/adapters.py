"""Experts that are LoRA adapters: merged into the pretrained model when loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..common import get_logger, require
from ..task_vectors.checks import shown
from ..task_vectors.files import UNREADABLE, one_line
from ..task_vectors.names import base_prefix, respelled_path, unplaced_names
from .folders import ADAPTER_CONFIG

log = get_logger(__name__)

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_KEYS = "base_model.model."  # what peft puts before a module's own names


class Adapter:
    """A folder with ``adapter_config.json`` and an adapter's weights, as peft saves it.

    The label is what error messages call the expert.
    """

    def __init__(self, folder: Path, label: str):
        require("peft", f"{label} is a LoRA adapter ({folder}), which")
        self.folder, self.label = folder, label
        self._config = folder / ADAPTER_CONFIG
        try:
            self._settings = dict(json.loads(self._config.read_bytes()))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{label}: {self._config} is damaged ({error}). Save the adapter again."
            ) from error

        if not any((folder / name).is_file() for name in _WEIGHTS):
            raise ValueError(
                f"{label}: {folder} has {ADAPTER_CONFIG}, but none of {_WEIGHTS}. Copy the"
                " adapter's weights there, or save it again."
            )

    @property
    def brings_head(self) -> bool:
        """Whether it holds whole layers, as of a classification head, too."""
        return bool(self._settings.get("modules_to_save"))

    def check_base(self, base: str | None) -> None:
        """Raise ValueError unless the adapter was trained on the pool's pretrained model.

        Names agree if their last part does, or if one side has none: the same model may
        lie in different places. Whether the tensors fit is seen when they are merged.
        """
        named = self._settings.get("base_model_name_or_path") or None
        ours, theirs = (Path(n).name.lower() if n else None for n in (base, named))
        if ours and theirs and ours != theirs:
            raise ValueError(
                f"{self.label} is an adapter of '{named}', but the pool's pretrained model"
                f" is '{base}'. Use that one as '_pretrained_'; if both are one model,"
                f" correct base_model_name_or_path in {self._config}."
            )
        log.info("%s: the adapter of %s is merged into %s.", self.label, named, base)

    def merged_into(self, base: nn.Module) -> nn.Module:
        """The base, changed: with the adapter's changes in its weights and its own head."""
        from peft import PeftConfig, PeftModel
        from peft.utils.save_and_load import (
            load_peft_weights,
            set_peft_model_state_dict,
        )

        where, fit = f"the adapter in {self.folder}", f"fit a {type(base).__name__}"
        try:
            tensors = _fitted(base, load_peft_weights(str(self.folder), device="cpu"))
            _resize_heads(base, tensors)
            model = PeftModel(base, PeftConfig.from_pretrained(str(self.folder)))
            result: Any = set_peft_model_state_dict(model, tensors)
        except UNREADABLE as error:
            raise ValueError(
                f"{self.label}: {where} is damaged or does not {fit}: {one_line(error)}."
            ) from error
        lacking = [name for name in result.missing_keys if ".default." in name]
        wrong = [*result.unexpected_keys, *lacking]
        if wrong or not hasattr(model, "merge_and_unload"):
            reason = shown(wrong) or "its kind cannot be merged into weights"
            raise ValueError(f"{self.label}: {where} does not {fit}: {reason}.")
        return model.merge_and_unload()


def _fitted(base: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By the base's own names, without what belongs to parts that it lacks."""
    prefix = base_prefix(base)
    if prefix and not hasattr(base, prefix.rstrip(".")):
        tensors = {n.replace(_KEYS + prefix, _KEYS, 1): t for n, t in tensors.items()}
    modules = [name for name, _ in base.named_modules()]
    tensors = {
        _KEYS + respelled_path(n.removeprefix(_KEYS), modules): t
        for n, t in tensors.items()
    }
    placed = unplaced_names(base, [n.removeprefix(_KEYS) for n in tensors])
    own = {_KEYS + n for n in (*placed, *base.state_dict())}
    return {name: tensor for name, tensor in tensors.items() if name in own}


def _resize_heads(base: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """A head that comes with the adapter may have other classes than the base's."""
    state = base.state_dict()
    for name, tensor in tensors.items():
        own = name.removeprefix(_KEYS)
        if own not in state or state[own].shape == tensor.shape:
            continue
        path, _, kind = own.rpartition(".")
        layer = base.get_submodule(path)
        setattr(layer, kind, nn.Parameter(torch.empty_like(tensor)))
        if isinstance(layer, nn.Linear):
            layer.out_features = len(tensor)
