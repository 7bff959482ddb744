"""Whether a module can be written into: copies of it, and memory of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import StateDictCheckpoint, is_strided
from .files import one_line


def copied(module: nn.Module, label: str) -> nn.Module:
    """A copy of a module; tensors that torch cannot copy, such as sparse ones, are shared.

    They are not merged, so that nothing writes into them.

    Args:
        module: Is left as it is.
        label: What error messages call it.

    Raises:
        ValueError: It cannot be copied, or its copy would compute with its weights.
    """
    tensors = (*module.parameters(), *module.buffers())
    shared = {id(t): t for t in tensors if not is_strided(t)}
    try:
        copy = deepcopy(module, shared)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"{label}: the {type(module).__name__} cannot be copied"
            f" ({one_line(error)[:120]}). Give a plain one: end pruning, weight_norm and"
            " spectral_norm with their remove functions, and gather a sharded model."
        ) from error
    originals = {id(part) for part in module.modules()}
    for place, part in copy.named_modules():
        for name, value in vars(part).items():
            if _computes_with(value, originals, set()):
                raise ValueError(
                    f"{label}: '{f'{place}.{name}'.lstrip('.')}' is a function set on the"
                    " module that holds its weights, so that a copy would compute with"
                    " those, not with merged ones. Use module.compile() instead of"
                    f" torch.compile(module.{name}), or define {name} in the class."
                )
    return copy


def _computes_with(function: Any, modules: Collection[int], seen: set[int]) -> bool:
    """Whether a function has hold of one of these modules; a copy of it has too."""
    if isinstance(function, MethodType):
        of_them = id(function.__self__) in modules
        return of_them or _computes_with(function.__func__, modules, seen)
    if not isinstance(function, FunctionType) or id(function) in seen:
        return False
    seen.add(id(function))
    known = [function.__globals__.get(name) for name in function.__code__.co_names]
    held = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # one that is not set yet
            held.append(cell.cell_contents)
    return any(id(value) in modules for value in known + held) or any(
        _computes_with(value, modules, seen) for value in held
    )


def require_own_memory(
    module: nn.Module, label: str, names: Sequence[str] | None = None
) -> None:
    """Give a module's tensors memory of their own, to be written into tensor by tensor.

    What repeats one entry by a stride of 0 becomes a whole tensor. Names of one and the
    same tensor are tied, and stay so.

    Args:
        module: Its state dict is what is written into.
        label: What error messages call it.
        names: What is written; all, and every parameter is among it, by default.

    Raises:
        ValueError: Two tensors share memory only in part, as a tensor and its transpose,
            one is no plain tensor, or `state_dict` gives others than the module's own.
    """
    state = module.state_dict(keep_vars=True)
    chosen = state if names is None else {name: state[name] for name in names}
    StateDictCheckpoint(chosen, label)  # which refuses what is no plain tensor
    _require_in_use(module, chosen, label, names is None)
    seen: dict[tuple, str] = {}
    by_storage: dict[int, dict[str, Tensor]] = {}
    for name, variable in chosen.items():
        tensor = variable.data
        if 0 in tensor.stride() and tensor.numel() > 1:
            variable.data = tensor = tensor.clone(memory_format=torch.contiguous_format)
        if tensor.numel() and seen.setdefault(place_of(tensor), name) == name:
            held = by_storage.setdefault(tensor.untyped_storage().data_ptr(), {})
            held[name] = tensor
    for shared in by_storage.values():
        _require_apart(shared, label)


def place_of(tensor: Tensor) -> tuple:
    """Equal for names of one and the same tensor; not for empty ones."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _require_in_use(
    module: nn.Module, state: Mapping[str, Tensor], label: str, whole: bool
) -> None:
    """Raise unless a state dict holds the tensors that the module computes with."""
    own = [t for t in module.buffers() if is_strided(t)] + list(module.parameters())
    places = {place_of(tensor) for tensor in own}
    problems = [
        f"gives a copy of '{name}'"
        for name, tensor in state.items()
        if tensor.numel() and place_of(tensor) not in places
    ]
    given = {place_of(tensor) for tensor in state.values()}
    problems += [
        f"leaves out '{name}'"
        for name, tensor in module.named_parameters()
        if whole
        if tensor.numel() and place_of(tensor) not in given
    ]
    if problems:
        raise ValueError(
            f"{label}: {type(module).__name__}.state_dict() {problems[0]}, so that the"
            " module would not compute with what is merged. Let it give every parameter"
            " itself, as nn.Module does, without hooks that change it."
        )


def _require_apart(tensors: Mapping[str, Tensor], label: str) -> None:
    """Raise if tensors of one storage have an entry in common."""
    last, end = "", 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_ptr()):
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        entries = sum((size - 1) * step for size, step in steps) + 1
        if tensor.data_ptr() < end:
            raise ValueError(
                f"{label}: '{last}' and '{name}' share a part of their memory, so that"
                " merging one would change the other. Make them tensors of their own, or"
                " one tied tensor."
            )
        last, end = name, tensor.data_ptr() + entries * tensor.itemsize


def check_target(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError unless merged tensors of these shapes can be put into a module."""
    target = module.state_dict(keep_vars=True)
    seen: dict[tuple, str] = {}
    for key, shape in shapes.items():
        problem = None
        if key not in target:
            problem = f"it lacks '{key}'"
        elif tuple(target[key].shape) != shape:
            problem = f"'{key}' has shape {tuple(target[key].shape)}, expected {shape}"
        elif not target[key].is_floating_point() or target[key].dtype.itemsize < 2:
            problem = f"'{key}' is {target[key].dtype}, which holds no weights"
        if problem:
            raise ValueError(
                f"{type(module).__name__} cannot take the merged weights: {problem}. Give"
                " a module of the base's architecture."
            )
    require_own_memory(module, f"the {type(module).__name__}", list(shapes))
    for key in shapes:
        tensor = target[key]
        if tensor.numel() and (other := seen.setdefault(place_of(tensor), key)) != key:
            raise ValueError(
                f"{type(module).__name__} cannot take the merged weights: '{other}' and"
                f" '{key}' are one tied tensor in it, two in the base. Untie them."
            )
