"""Experts that are LoRA adapters: merged into the pretrained model when loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..common.logging import get_logger
from ..task_vectors.checks import shown
from .names import base_prefix, unplaced_names

log = get_logger(__name__)

_CONFIG = "adapter_config.json"
_KEYS = "base_model.model."  # what peft puts before a module's own names


def is_adapter(folder: str | Path | None) -> bool:
    """Whether a folder holds an adapter instead of a model."""
    return folder is not None and Path(folder, _CONFIG).is_file()


def adapter_settings(folder: str | Path, label: str) -> dict[str, Any]:
    """What ``adapter_config.json`` says.

    Raises:
        ValueError: It is damaged.
    """
    file = Path(folder, _CONFIG)
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{label}: {file} is damaged ({error}). Save the adapter again."
        ) from error


def check_base_name(folder: str | Path, base: str | None, label: str) -> None:
    """The adapter must have been trained on the pool's pretrained model.

    Names agree if their last part does, or if one side has none: the same model may lie
    in different places. Whether the tensors fit is seen when they are merged.

    Raises:
        ValueError: The adapter names another model.
    """
    named = adapter_settings(folder, label).get("base_model_name_or_path") or None
    if named is None or base is None:
        log.info("%s is merged into the pool's pretrained model.", label)
        return
    ours, theirs = (Path(name).name.lower() for name in (base, named))
    if ours != theirs and Path(named).resolve() != Path(base).resolve():
        raise ValueError(
            f"{label} is an adapter of '{named}', but the pool's pretrained model is"
            f" '{base}'. Use that as '_pretrained_'; if both are one model, correct"
            f" base_model_name_or_path in {Path(folder, _CONFIG)}."
        )
    log.info("%s is an adapter of %s, merged into %s.", label, named, base)


def merge_adapter(base: nn.Module, folder: str | Path, label: str) -> nn.Module:
    """The base with the adapter's changes in its weights, and the adapter's own head.

    Args:
        base: Is changed.
        folder: Holds ``adapter_config.json`` and the adapter's weights.
        label: What error messages call the expert.

    Raises:
        ValueError: peft is missing, or the adapter does not fit the base.
    """
    try:
        from peft import PeftConfig, PeftModel
        from peft.utils.save_and_load import load_peft_weights, set_peft_model_state_dict
    except ImportError as error:
        raise ValueError(
            f"{label} is a LoRA adapter ({folder}), which needs peft: pip install"
            " 'fusion-plugins[peft]'."
        ) from error
    tensors = _fitted(base, load_peft_weights(str(folder), device="cpu"))
    _resize_heads(base, tensors)
    model = PeftModel(base, PeftConfig.from_pretrained(str(folder)))
    result = set_peft_model_state_dict(model, tensors)
    lacking = [n for n in result.missing_keys if ".default." in n or ".lora_" in n]
    wrong = [*result.unexpected_keys, *lacking]
    if wrong or not hasattr(model, "merge_and_unload"):
        raise ValueError(
            f"{label}: the adapter in {folder} does not fit a {type(base).__name__}:"
            f" {shown(wrong) or 'its kind cannot be merged into weights'}."
        )
    return model.merge_and_unload()


def _fitted(base: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By the base's own names, without what belongs to parts that it lacks."""
    prefix = base_prefix(base)
    if prefix and not hasattr(base, prefix.rstrip(".")):
        tensors = {n.replace(_KEYS + prefix, _KEYS, 1): t for n, t in tensors.items()}
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
