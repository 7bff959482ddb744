"""Merges that move along a line with their scaling: merged once, then only scaled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fusion_bench.method import TaskArithmeticAlgorithm, TiesMergingAlgorithm
from hydra.utils import get_object
from torch import nn

from ..merged.model import TintedModel
from ..merged.statistics import batch_norms

# Exactly these classes, for a subclass may do more: base + scaling_factor * direction.
_SCALED = (TaskArithmeticAlgorithm, TiesMergingAlgorithm)
SCALING = "scaling_factor"


def on_a_line(config: Mapping[str, Any], path: Sequence[str]) -> bool:
    """Whether changing one option of a method moves its merge along a line.

    Args:
        config: The method.
        path: The option's place in it.
    """
    kind = get_object(config["_target_"]) if "_target_" in config else None
    if len(path) == 1:
        return path[0] == SCALING and kind in _SCALED
    inner = config[path[0]]
    keeps = getattr(kind, "keeps_lines", False) and isinstance(inner, Mapping)
    return keeps and on_a_line(inner, path[1:])


def chooser(config: Mapping[str, Any], path: Sequence[str]) -> str | None:
    """The part of a method that sets an option itself, whatever its config says.

    Args:
        config: The method.
        path: The option's place in it.
    """
    for part in path[:-1]:
        kind = get_object(config["_target_"]) if "_target_" in config else None
        if path[-1] in getattr(kind, "chooses", lambda config: ())(config):
            return getattr(kind, "__name__", str(kind))
        config = config[part]
    return None


class Line:
    """The merges base + s * direction, from the base and the merge with s = 1.

    Args:
        base: The pretrained model.
        merged: The merge with a scaling of 1; is overwritten from then on.
    """

    def __init__(self, base: nn.Module, merged: nn.Module):
        self.merged = merged
        trunk = merged.trunk if isinstance(merged, TintedModel) else merged
        start, state = base.state_dict(), trunk.state_dict(keep_vars=True)
        self._moves = [
            (tensor.data, origin, tensor.data.to(wide) - origin.to(wide))
            for name, tensor in state.items()
            if name in start and tensor.is_floating_point()
            for origin in [start[name].to(tensor.device)]
            for wide in [torch.promote_types(tensor.dtype, torch.float32)]
        ]

    @staticmethod
    def passes_through(base: nn.Module) -> bool:
        """Whether merges of such models can be on a line: running statistics are not."""
        return not batch_norms(base)

    def at(self, scaling: float) -> nn.Module:
        """The merge with this scaling; the same module each time."""
        for tensor, origin, direction in self._moves:
            tensor.copy_(torch.add(origin, direction, alpha=scaling))
        return self.merged
