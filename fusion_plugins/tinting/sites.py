"""Where a tint goes: the classification head, or named layers inside the model."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from copy import deepcopy
from fnmatch import fnmatchcase

from fusion_bench.models.wrappers.switch import SwitchModule, _standardize_option_name
from torch import nn

HEAD = "head"


def find_sites(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the modules that match; a module inside a chosen one is not chosen again.

    Raises:
        ValueError: A pattern matches nothing, or a chosen layer is a mere list of
            layers, has no parameters, or shares one with the rest of the model.
    """
    names = [name for name, _ in module.named_modules() if name]
    chosen: list[str] = []
    for pattern in patterns:
        found = [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
            raise ValueError(
                f"tint: no layer is named '{pattern}'. Near names: {near}. Use '{HEAD}', a"
                " module path, or a shell-style pattern of module paths."
            )
        chosen += found
    chosen = [
        n for n in dict.fromkeys(chosen) if not any(_inside(n, o) for o in chosen)
    ]
    for name in chosen:
        _check_site(module, name)
    return chosen


def _inside(name: str, other: str) -> bool:
    return name.startswith(other + ".")


def _check_site(module: nn.Module, site: str) -> None:
    layer = module.get_submodule(site)
    if isinstance(layer, (nn.ModuleList, nn.ModuleDict)):
        raise ValueError(
            f"tint: '{site}' is a list of layers, which no forward calls as a whole. Name"
            f" the layers inside: '{site}.*' for all, or some of"
            f" {[f'{site}.{name}' for name, _ in layer.named_children()][:3]}."
        )
    own = {id(p) for p in layer.parameters()}
    if not own:
        raise ValueError(f"tint: layer '{site}' has no parameters to learn.")
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if id(parameter) in own and not _inside(name, site):
            raise ValueError(
                f"tint: layer '{site}' shares the parameter '{name}' with the rest of the"
                " model (tied weights). Untie them first, or tint another layer."
            )


def check_task_names(tasks: Sequence[str]) -> None:
    """FusionBench's SwitchModule must be able to tell the tasks apart.

    Raises:
        ValueError: Two names differ only in case, '-' and '/', or one has a '.'.
    """
    seen: dict[str, str] = {}
    for task in tasks:
        option = _standardize_option_name(task)
        if "." in option:
            raise ValueError(
                f"task name '{task}' has a '.', which modules cannot have."
            )
        if option in seen:
            raise ValueError(
                f"tasks '{seen[option]}' and '{task}' are the same option '{option}' of"
                " FusionBench's SwitchModule. Rename one of them."
            )
        seen[option] = task


def install(
    module: nn.Module, site: str, make: Callable[[str], nn.Module], tasks: Sequence[str]
) -> SwitchModule:
    """Put a SwitchModule with one layer per task where the layer `site` was."""
    switch = SwitchModule({task: make(task) for task in tasks})
    replace(module, site, switch)
    return switch


def replace(module: nn.Module, site: str, layer: nn.Module) -> None:
    """Put a layer at a module path."""
    parent, _, child = site.rpartition(".")
    setattr(module.get_submodule(parent), child, layer)


def option(switch: SwitchModule, task: str) -> nn.Module:
    """The layer of one task."""
    return switch._option_modules[_standardize_option_name(task)]


def trainable_copy(layer: nn.Module) -> nn.Module:
    return deepcopy(layer).requires_grad_(True)
