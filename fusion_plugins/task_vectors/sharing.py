"""Tensors that share memory: a merge writes into them one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from .checkpoint import is_strided, module_checkpoint


def copied(module: nn.Module) -> nn.Module:
    """A copy of a module; tensors that torch cannot copy, such as sparse ones, are shared.

    They are not merged, so that nothing writes into them.
    """
    tensors = (*module.parameters(), *module.buffers())
    return deepcopy(module, {id(t): t for t in tensors if not is_strided(t)})


def require_own_memory(module: nn.Module, label: str) -> None:
    """Give a module's tensors memory of their own, to be written into tensor by tensor.

    What repeats one entry by a stride of 0 becomes a whole tensor. Names of one and the
    same tensor are tied, and stay so.

    Raises:
        ValueError: Two tensors share memory only in part, as a tensor and its transpose,
            or one is no plain tensor.
    """
    module_checkpoint(module, label)  # which refuses what is no plain tensor
    seen: dict[tuple, str] = {}
    by_storage: dict[int, dict[str, Tensor]] = {}
    for name, variable in module.state_dict(keep_vars=True).items():
        tensor = variable.data
        if 0 in tensor.stride() and tensor.numel() > 1:
            variable.data = tensor = tensor.clone(memory_format=torch.contiguous_format)
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and seen.setdefault(place, name) == name:
            held = by_storage.setdefault(tensor.untyped_storage().data_ptr(), {})
            held[name] = tensor
    for shared in by_storage.values():
        _require_apart(shared, label)


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
