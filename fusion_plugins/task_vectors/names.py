"""Names of tensors, which differ between files and classes, and between releases.

The same tensor is called differently by wrappers (``module.``), by training scripts, and
by releases of transformers: up to 5.5, names of CLIP's vision model start with
``vision_model.``; later ones do without, in memory and in files.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from ..common import get_logger
from .checkpoint import Checkpoint, NamedAs

log = get_logger(__name__)

# What wrappers put before every name: DataParallel, torch.compile, training scripts.
PREFIXES = ("module.", "_orig_mod.", "clip_model.", "model.")
# What CLIP's vision model put there itself, until transformers 5.6.
TOWER = "vision_model."


def towerless(name: str) -> str:
    """A tensor's or module's name as all releases of transformers can compare it."""
    return name.removeprefix(TOWER)


def respelled(pattern: str, names: Collection[str]) -> str:
    """A name or pattern as a model with these names has it, with CLIP's tower or without.

    What matches one of them stays as it is.
    """
    for spelling in (pattern, towerless(pattern), TOWER + pattern):
        if any(fnmatchcase(name, spelling) for name in names):
            return spelling
    return pattern


def respelled_path(name: str, modules: Collection[str]) -> str:
    """The name of a tensor or layer, its first parts as modules with these names have it."""
    first = ".".join(name.split(".")[:2])
    return respelled(first, modules) + name.removeprefix(first)


def fitted_names(
    stored: Iterable[str],
    wanted: Iterable[str],
    towers: Sequence[str] = (TOWER,),
    module: nn.Module | None = None,
    label: str = "",
) -> dict[str, str]:
    """A module's name -> a checkpoint's name of the same tensor.

    Args:
        stored: The checkpoint's names. Known prefixes are taken off where that helps.
        wanted: The module's names.
        towers: Prefixes that are also put on where that helps.
        module: Its class may call stored tensors by other names.
        label: What errors call the model.

    Raises:
        ValueError: Two tensors of the checkpoint would have one name.
    """
    wanted, rename = set(wanted), str if module is None else _class_renaming(module)
    found: dict[str, str] = {}
    for name in stored:
        candidates = (c for n in _candidates(name, towers) for c in (n, rename(n)))
        fitting = (c for c in candidates if c in wanted)
        place = next(fitting, None)
        if place is None:
            continue
        if place in found:
            raise ValueError(
                f"{label}{': ' if label else ''}both '{found[place]}' and '{name}' could"
                f" be the tensor '{place}'. Remove one of them from the checkpoint."
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
    pattern, tower = unused_names(module), "" if TOWER[:-1] in parts else TOWER
    found = []
    for name in stored:
        bare = [n.removeprefix(prefix).removeprefix(tower) for n in _bare_names(name)]
        known = bare[0] in state or not buffers.isdisjoint(bare) or pattern.search(name)
        if not known and any(n.partition(".")[0] in parts for n in bare):
            found.append(name)
    return found


# Buffers that older releases of transformers stored and newer ones do not know.
_COMPUTED = (r"rotary_emb\.inv_freq$", r"attn\.masked_bias$")


def unused_names(module: nn.Module) -> re.Pattern[str]:
    """What stored tensors are called that the module's class makes itself."""
    ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or []
    return re.compile("|".join([*ignored, *_COMPUTED]))


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


def named_like(base: Checkpoint, expert: Checkpoint) -> Checkpoint:
    """The expert, its tensors by the base's names where only known prefixes differ."""
    names = fitted_names(expert.specs, base.specs, label=expert.label)
    before = _prefix_of_all(base.specs)
    if before and not names:  # only the base is wrapped
        bare = [name.removeprefix(before) for name in base.specs]
        fitted = fitted_names(expert.specs, bare, label=expert.label)
        names = {before + name: stored for name, stored in fitted.items()}
    own = {name: name for name in expert.specs.keys() - names.values()}
    return (
        NamedAs(expert, names | own)
        if any(n != s for n, s in names.items())
        else expert
    )


def _prefix_of_all(names: Collection[str]) -> str:
    """The known prefixes that all names start with."""
    before = ""
    while prefix := next(
        (p for p in PREFIXES if all(n.startswith(before + p) for n in names)), None
    ):
        before += prefix
    return before


def renames(module: nn.Module) -> bool:
    """Whether the module's class has other names in files than in memory."""
    return bool(
        getattr(module, "_checkpoint_conversion_mapping", None) or _changes(module)
    )


def _class_renaming(module: nn.Module) -> Callable[[str], str]:
    """What the module's class calls a stored tensor.

    Tensors that the class joins or splits keep their names.
    """
    changes = [c for c in _changes(module) if not hasattr(c, "operations")]

    def rename(name: str) -> str:
        for change in changes:
            name = change.rename_source_key(name)[0]
        return name

    return rename


def say_renamed(names: Mapping[str, str], label: str, source: object) -> None:
    """Log that names in files differ from those in memory, if they do.

    That files name the tower, as most on the hub do, is not worth a word.

    Args:
        names: Name in memory -> name in the files.
        label: What messages call the model.
        source: Where the files are.
    """
    renamed = [(n, s) for n, s in names.items() if n != s]
    if renamed:
        ours, theirs = renamed[0]
        # Releases of transformers call the tower differently: nothing to look into.
        usual = all(TOWER + n == s or n == TOWER + s for n, s in renamed)
        log.log(
            logging.DEBUG if usual else logging.INFO,
            "%s: names in %s differ by a known prefix; '%s' is loaded as '%s', and so on.",
            *(label, source, theirs, ours),
        )


def _changes(module: nn.Module) -> list[Any]:
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:  # transformers 4, which renames nothing
        return []
    return get_model_conversion_mapping(module, add_legacy=False)
