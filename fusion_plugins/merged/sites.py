"""Where a tint goes: the classification head, or named layers inside the model."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from fnmatch import fnmatchcase
from typing import Any

from fusion_bench.models.wrappers.switch import SwitchModule
from torch import Tensor, nn

from ..common.upstream import active_option_of, option_name, options_of
from ..task_vectors.names import respelled, respelled_path

HEAD = "head"
_OUTER = "outer:"

# A file system's limit on names is 255 bytes, and the file has an ending.
_LONGEST_NAME = 200


class Site(str):
    """Where tasks differ, spelt as in a saved model's index.

    ``head``: the classification head, outside the trunk; ``outer:NAME``: a layer that the
    pool applies after the trunk; anything else: a module path of the trunk.
    """

    @classmethod
    def on(cls, trunk: nn.Module, name: str) -> Site:
        """The site as the trunk's layers are called, with CLIP's tower or without."""
        return cls(respelled_path(name, [n for n, _ in trunk.named_modules()]))

    @classmethod
    def outer(cls, name: str) -> Site:
        """The site of a layer after the trunk."""
        return cls(_OUTER + name)

    @property
    def is_head(self) -> bool:
        return self == HEAD

    @property
    def is_outer(self) -> bool:
        return self.startswith(_OUTER)

    @property
    def in_trunk(self) -> bool:
        return not self.is_head and not self.is_outer

    @property
    def layer(self) -> str:
        """The name of the layer where it is."""
        return self.removeprefix(_OUTER)


def find_sites(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the modules that match; a module inside a chosen one is not chosen again.

    Raises:
        ValueError: A pattern matches nothing, or a chosen layer is a mere list of
            layers, has no parameters, or shares one with the rest of the model.
    """
    names = [name for name, _ in module.named_modules() if name]
    chosen: list[str] = []
    for pattern in patterns:
        own = respelled(pattern, names)
        found = [name for name in names if fnmatchcase(name, own)]
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


def file_name(task: str) -> str:
    """A task's name as part of a file's: 'glue/cola' must not become a subfolder."""
    return task.replace("/", "_")


def check_task_names(tasks: Sequence[str]) -> None:
    """Raise ValueError unless every task can have a module and a file of its own."""
    modules: dict[str, str] = {}
    files: dict[str, str] = {}
    for task in tasks:
        option = option_name(task)
        problem = None
        if not option or "." in option or hasattr(nn.ModuleDict(), option):
            problem = (
                "which modules cannot have: it is empty, has a '.', or is reserved"
            )
        elif len(file_name(task).encode()) > _LONGEST_NAME or "\0" in task:
            problem = f"which files cannot have: at most {_LONGEST_NAME} bytes, no NUL"
        elif modules.setdefault(option, task) != task:
            problem = f"which FusionBench's SwitchModule takes for '{modules[option]}'"
        elif files.setdefault(file_name(task).casefold(), task) != task:
            problem = (
                f"whose file would be that of '{files[file_name(task).casefold()]}'"
            )
        if problem:
            raise ValueError(
                f"a task has the name '{task[:60]}', {problem}. Rename it in the pool."
            )


class TaskSwitch(SwitchModule):
    """FusionBench's SwitchModule, with no option chosen at first.

    The original starts with the first task's layer, which would give every other task
    wrong results without a word.
    """

    def __init__(self, modules: Mapping[str, nn.Module], site: str):
        super().__init__(dict(modules))
        self._site = site
        active_option_of.put(self, None)

    def set_active_option(self, option_name: str | None) -> None:
        """Choose a task's layer; None for none."""
        if option_name is None:
            active_option_of.put(self, None)
        else:
            super().set_active_option(option_name)

    def __getattr__(self, name: str) -> Any:
        if self.__dict__.get(active_option_of.name) is None:
            return nn.Module.__getattr__(self, name)
        return super().__getattr__(name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if active_option_of(self) is None:
            raise RuntimeError(
                f"The layer '{self._site}' differs between the tasks"
                f" {list(options_of(self))}, but no task is set: call"
                " set_task(name) on the tinted model, or evaluate with a task pool that"
                " does (CLIPTaskPool, FusionBench's ImageClassificationTaskPool)."
            )
        return super().forward(*args, **kwargs)


def replace(module: nn.Module, site: str, layer: nn.Module) -> None:
    """Put a layer at a module path."""
    parent, _, child = site.rpartition(".")
    setattr(module.get_submodule(parent), child, layer)


@contextmanager
def replaced(module: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """For a while other layers stand at some module paths."""
    before = {path: module.get_submodule(path) for path in layers}
    try:
        for path, layer in layers.items():
            replace(module, path, layer)
        yield
    finally:
        for path, layer in before.items():
            replace(module, path, layer)


def option(switch: nn.Module, task: str) -> nn.Module:
    """The layer of one task."""
    return options_of(switch)[option_name(task)]


def fitting_copy(layer: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy whose linear layers have the shapes of `state`: heads differ in classes."""
    layer = trainable_copy(layer)
    if isinstance(layer, nn.Linear):
        return _linear_like(state, "")
    for name, part in list(layer.named_modules()):
        if isinstance(part, nn.Linear) and name:
            replace(layer, name, _linear_like(state, f"{name}."))
    return layer


def _linear_like(state: Mapping[str, Tensor], prefix: str) -> nn.Linear:
    classes, features = linear_shape(state[f"{prefix}weight"])
    dtype = state[f"{prefix}weight"].dtype
    return nn.Linear(features, classes, bias=f"{prefix}bias" in state, dtype=dtype)


def linear_shape(weight: Tensor) -> tuple[int, int]:
    """Classes and features of a linear layer, or ValueError."""
    if weight.dim() != 2:
        shape = tuple(weight.shape)
        raise ValueError(f"a weight has shape {shape}, expected (classes, features)")
    return weight.shape[0], weight.shape[1]


def trainable_copy(layer: nn.Module) -> nn.Module:
    return deepcopy(layer).requires_grad_(True)
