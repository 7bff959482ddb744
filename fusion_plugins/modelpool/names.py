"""Tensors of a checkpoint by the names that a module has for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

# What wrappers put before every name: DataParallel, torch.compile, training scripts.
PREFIXES = ("module.", "_orig_mod.", "clip_model.", "model.")
# What some classes put there themselves, and others (or other releases) do not.
_TOWERS = ("vision_model.",)


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


def unplaced_names(module: nn.Module, stored: Iterable[str]) -> list[str]:
    """Names that belong inside a part of the module, where it has no such tensor.

    Those of whole parts that the module lacks, as of a text tower or of another head, are
    no mistake: the class was made without.
    """
    prefix = base_prefix(module)
    trunk = getattr(module, prefix.rstrip("."), None)
    owners = [module, trunk] if isinstance(trunk, nn.Module) else [module]
    parts = {name for owner in owners for name, _ in owner.named_children()}
    tensors = (module.state_dict(), dict(module.named_buffers()))
    known = {name.removeprefix(prefix) for names in tensors for name in names}
    ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or []
    pattern = re.compile("|".join([*ignored, r"rotary_emb\.inv_freq"]))
    found = []
    for name in stored:
        bare = [n.removeprefix(prefix) for n in _bare_names(name)]
        place = next((n for n in bare if n.partition(".")[0] in parts), None)
        if place and not known.intersection(bare) and not pattern.search(name):
            found.append(name)
    return found


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
