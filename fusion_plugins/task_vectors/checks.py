"""What must hold of tensors before they are merged.

Only names, shapes, dtypes and configs are looked at here; values are checked while they
are read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from ..common import get_logger
from .checkpoint import Checkpoint, TensorSpec
from .files import UNMADE, one_line
from .names import respelled

log = get_logger(__name__)

# Values of a config that change nothing in what a model computes, or that are looked at
# elsewhere.
_FREE = re.compile(
    "_name_or_path|transformers_version|architectures|auto_map|(torch_)?dtype|use_cache"
    "|vocab_size|tie_word_embeddings|.*_token_id|id2label|label2id|.*drop.*|_.*"
    "|problem_type|finetuning_task|task_specific_params|initializer_.*|output_.*"
)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a tensor name matches any of the shell-style patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def used_patterns(
    option: str, patterns: Sequence[str], names: Sequence[str]
) -> tuple[str, ...]:
    """The patterns in the names' own spelling.

    Raises:
        ValueError: A pattern matches nothing: nearly always a typo.
    """
    found = tuple(respelled(pattern, names) for pattern in patterns)
    for pattern in found:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"{option}: pattern '{pattern}' matches none of the {len(names)}"
                f" tensors (first ones: {list(names)[:5]}). Patterns are shell-style:"
                " *, ?, [abc]."
            )
    return found


def is_mergeable(spec: TensorSpec) -> bool:
    """Floating tensors are merged; counters, indices and masks stay as in the base."""
    return spec.dtype.is_floating_point


# Where torch's spectral_norm keeps the singular vectors of a weight that it divides.
_SINGULAR = re.compile(r"(.*\.)?parametrizations\.\w+\.\d+\._[uv]")


def is_singular_vector(name: str, names: Collection[str]) -> bool:
    """Whether a tensor is no weight, but estimated from one by spectral_norm."""
    stem = name.removesuffix("_u").removesuffix("_v")
    return bool(_SINGULAR.fullmatch(name)) or stem != name and f"{stem}_orig" in names


def say_singular(base: Checkpoint, names: Sequence[str]) -> None:
    if names:
        log.warning(
            "%s: '%s', and what else spectral_norm estimates, stays as in the base. Run"
            " the merged model a few times in training mode, which fits it to the weights.",
            *(base.label, names[0]),
        )


def shown(names: Sequence[str], limit: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(f"'{n}'" for n in names[:limit]) + more


def check_experts_given(experts: Collection[str]) -> None:
    if not experts:
        raise ValueError(
            "There is no expert to merge: the pool has only the pretrained model."
            " Add at least one fine-tuned model under `models`."
        )


def check_names(
    base: Checkpoint,
    expert: Checkpoint,
    groups: Sequence[Sequence[str]],
    keep: Sequence[str],
) -> None:
    """The expert must have every tensor of the base (one name of a tied group is enough).

    Raises:
        ValueError: A tensor is missing from the expert, or only the expert has it.
    """
    alias_of = {name: set(group) for group in groups for name in group}
    missing = [
        name
        for name in base.specs
        if not alias_of.get(name, {name}) & expert.specs.keys()
        and not matches(name, keep)
    ]
    if missing and any(".base_layer." in name for name in expert.specs):
        raise ValueError(
            f"{expert.label} is a model with an adapter of peft in it. Merge that into its"
            " weights: model.merge_and_unload()."
        )
    if missing:
        raise ValueError(
            f"{expert.label} lacks {len(missing)} tensor(s) of {base.label}:"
            f" {shown(missing)}. Base and experts must share one architecture; to leave"
            " tensors as they are in the base, list patterns for them in `keep`."
        )
    extra = [n for n in expert.specs if n not in base.specs and not matches(n, keep)]
    if extra:
        raise ValueError(
            f"{expert.label} has {len(extra)} tensor(s) that {base.label} lacks:"
            f" {shown(extra)}. They cannot be merged; to leave them out, list patterns for"
            " them in `keep`."
        )


def check_specs(
    base: Checkpoint, expert: Checkpoint, name: str, expert_name: str
) -> None:
    """Shapes must be equal, and a float must meet a float.

    Raises:
        ValueError: Shapes differ, or one side is floating and the other is not.
    """
    ours, theirs = base.specs[name], expert.specs[expert_name]
    _reject_float8(base, name)
    _reject_float8(expert, expert_name)
    if ours.shape != theirs.shape:
        raise ValueError(
            f"{expert.label}: tensor '{expert_name}' has shape {theirs.shape},"
            f" {base.label} has {ours.shape}. Merge models of one size; for task-specific"
            f" heads or vocabularies add keep=['{name}'] to leave it as in the base."
        )
    if is_mergeable(ours) != is_mergeable(theirs):
        raise ValueError(
            f"{expert.label}: tensor '{expert_name}' is {theirs.dtype}, {base.label} has"
            f" {ours.dtype}. A quantised or indexed tensor cannot be merged with a float"
            " one: save both models in a floating dtype."
        )


def _reject_float8(checkpoint: Checkpoint, name: str) -> None:
    # Its values mean nothing without scales, which are stored apart.
    dtype = checkpoint.specs[name].dtype
    if is_mergeable(checkpoint.specs[name]) and dtype.itemsize < 2:
        raise ValueError(
            f"{checkpoint.label}: tensor '{name}' is {dtype}. Quantised weights cannot be"
            " merged: dequantise the model and save it in bfloat16."
        )


def check_still_tied(expert: Checkpoint, group: Sequence[str]) -> None:
    """Names tied in the base must still hold one value in the expert.

    Raises:
        ValueError: The expert has trained them apart, or holds NaN or Inf.
    """
    present = [name for name in group if name in expert.specs]
    for other in present[1:]:
        if not torch.equal(expert.read(present[0]), expert.read(other)):
            for name in (present[0], other):  # a NaN is not equal to itself
                check_finite(expert, name)
            raise ValueError(
                f"{expert.label} holds different values in '{present[0]}' and '{other}',"
                " which are one tied tensor in the base. Untie them in the base (and all"
                " experts) or tie them in this expert before merging."
            )


def check_finite(checkpoint: Checkpoint, name: str) -> None:
    """Raise ValueError if a tensor holds NaN or Inf."""
    tensor = checkpoint.read(name)
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise ValueError(
            f"{checkpoint.label}: tensor '{name}' holds {bad} NaN or Inf of"
            f" {tensor.numel()} entries. Merging would spread them: fix or leave out this"
            " checkpoint, or leave a tensor that is meant to hold them, such as a mask, as"
            f" in the base with keep=['{name}']."
        )


def say_other_config(base: Any, expert: Any, label: str) -> None:
    """Say which values that change what a model computes are not the base's.

    Args:
        base: It, or its config; where there is none of transformers', nothing is said.
        expert: It, its config, or its folder.
        label: What the warning calls the expert.
    """
    base = getattr(base, "config", base)
    if isinstance(expert, Path):
        expert = _config_in(expert, base, label)
    expert = getattr(expert, "config", expert)
    if not (hasattr(base, "to_dict") and hasattr(expert, "to_dict")):
        return
    ours, theirs = _settings(base.to_dict()), _settings(expert.to_dict())
    for key in sorted({*ours, *theirs}):
        if ours.get(key) != theirs.get(key):
            log.warning(
                "%s has %s=%r in its config, the base has %r; the merged model computes"
                " with the base's.",
                *(label, key, theirs.get(key), ours.get(key)),
            )


def _config_in(folder: Path, base: Any, label: str) -> Any:
    """The part of a folder's config that the base's class knows, if there is one."""
    if not hasattr(base, "from_pretrained") or not (folder / "config.json").is_file():
        return None
    try:
        return base.from_pretrained(str(folder))
    except UNMADE as error:
        log.warning("%s: its config is not compared: %s", label, one_line(error))
        return None


def _settings(config: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """The values that matter; those of an inner config under its name and theirs."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if _FREE.fullmatch(key):
            continue
        if isinstance(value, Mapping):
            found |= _settings(value, f"{place}{key}.")
        else:
            found[place + key] = value
    return found
