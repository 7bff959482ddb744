"""Everything that can be wrong with a base and its experts, found before any work.

Only names, shapes and dtypes are looked at here; values are checked while they are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from .checkpoint import Checkpoint, TensorSpec

# What wrappers put before every name: DataParallel, torch.compile, training scripts.
PREFIXES = ("module.", "_orig_mod.", "clip_model.", "model.")
# What some classes put there themselves, and others (or other releases) do not.
_TOWERS = ("vision_model.",)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a tensor name matches any of the shell-style patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def reject_unused_patterns(
    option: str, patterns: Sequence[str], names: Sequence[str]
) -> None:
    """Raise ValueError for a pattern that matches nothing: nearly always a typo."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"{option}: pattern '{pattern}' matches none of the {len(names)}"
                f" tensors (first ones: {list(names)[:5]}). Patterns are shell-style:"
                " *, ?, [abc]."
            )


def is_mergeable(spec: TensorSpec) -> bool:
    """Floating tensors are merged; counters, indices and masks stay as in the base."""
    return spec.dtype.is_floating_point


def shown(names: Sequence[str], limit: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(f"'{n}'" for n in names[:limit]) + more


def check_experts_given(experts: Mapping[str, Checkpoint]) -> None:
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
        ValueError: The expert has trained them apart.
    """
    present = [name for name in group if name in expert.specs]
    for other in present[1:]:
        if not torch.equal(expert.read(present[0]), expert.read(other)):
            raise ValueError(
                f"{expert.label} holds different values in '{present[0]}' and '{other}',"
                " which are one tied tensor in the base. Untie them in the base (and all"
                " experts) or tie them in this expert before merging."
            )


def fitted_names(
    stored: Iterable[str], wanted: Iterable[str], towers: Sequence[str] = _TOWERS
) -> dict[str, str]:
    """A module's name -> a checkpoint's name of the same tensor.

    Args:
        stored: The checkpoint's names. Known prefixes are taken off where that helps.
        wanted: The module's names.
        towers: Prefixes that are also put on where that helps.

    Raises:
        ValueError: Two tensors of the checkpoint would have one name.
    """
    stored, wanted = list(stored), set(wanted)
    found: dict[str, str] = {}
    for name in stored:
        fitting = (c for c in _candidates(name, towers) if c in wanted)
        place = next(fitting, None)
        if place is None:
            continue
        if place in found:
            raise ValueError(
                f"both '{found[place]}' and '{name}' could be the tensor '{place}'. Remove"
                " one of them from the checkpoint."
            )
        found[place] = name
    return found


def _candidates(name: str, towers: Sequence[str]) -> Iterator[str]:
    for bare in _bare_names(name):
        yield bare
        for tower in towers:
            yield bare.removeprefix(tower)
            yield tower + bare


def _bare_names(name: str) -> Iterator[str]:
    yield name
    while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
        name = name.removeprefix(prefix)
        yield name


def bare_name(name: str) -> str:
    """A tensor's name without known prefixes."""
    return list(_bare_names(name))[-1]


def unplaced_names(module: nn.Module, stored: Iterable[str]) -> list[str]:
    """Names that belong inside a part of the module, where it has no such tensor.

    Those of whole parts that the module lacks, as of a text tower or of another head, are
    no mistake: the class was made without.
    """
    prefix = base_prefix(module)
    trunk = getattr(module, prefix.rstrip("."), None)
    owners = [module, trunk] if isinstance(trunk, nn.Module) else [module]
    parts = {name for owner in owners for name, _ in owner.named_children()}
    state = {name.removeprefix(prefix) for name in module.state_dict()}
    buffers = {name.removeprefix(prefix) for name, _ in module.named_buffers()} - state
    pattern = unused_names(module)
    found = []
    for name in stored:
        bare = [n.removeprefix(prefix) for n in _bare_names(name)]
        known = bare[0] in state or not buffers.isdisjoint(bare) or pattern.search(name)
        if not known and any(n.partition(".")[0] in parts for n in bare):
            found.append(name)
    return found


def unused_names(module: nn.Module) -> re.Pattern[str]:
    """What stored tensors are called that the module's class makes itself."""
    ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or []
    return re.compile("|".join([*ignored, r"rotary_emb\.inv_freq$"]))


def base_prefix(module: nn.Module) -> str:
    """What names of a transformers trunk start with inside a model with a head."""
    name = getattr(module, "base_model_prefix", "")
    return f"{name}." if name else ""


def missing_names(module: nn.Module, given: Iterable[str]) -> list[str]:
    """The module's tensors that none of the names given stands for.

    A tied tensor needs one of its names. Indices and counters, such as position ids, have
    their values from the class.
    """
    given = set(given)
    ignored = getattr(module, "_keys_to_ignore_on_load_missing", None) or []
    state = module.state_dict(keep_vars=True)
    held = {id(tensor) for name, tensor in state.items() if name in given}
    return [
        name
        for name, tensor in state.items()
        if isinstance(tensor, torch.Tensor)
        and tensor.is_floating_point()
        and id(tensor) not in held
        and not any(re.search(pattern, name) for pattern in ignored)
    ]
