"""The forward pass to learn with, where a model has batch normalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from ..merged.statistics import BatchNorm, RunningStatistics, batch_norms


def learning_forward(statistics: RunningStatistics, forward: Callable) -> Callable:
    """The forward function to learn with.

    With ``merged`` statistics every variance is made positive first; with those of
    each task, a batch is normalised by its own, as it will be in the end.

    Args:
        statistics: What the merge does with them.
        forward: (module, inputs) -> features.
    """
    if statistics.recalibrates and statistics.choice.per_task:
        return with_batch_statistics(forward)
    if statistics.choice is not BatchNorm.MERGED or not statistics.names:
        return forward
    found: list[tuple[Tensor, Tensor]] = []

    def run(module: nn.Module, inputs: Tensor) -> Tensor:
        if not found:  # the merge writes into these tensors, it makes no new ones
            found.extend(_variances(statistics, module))
        for variance, average in found:
            torch.where(variance > 0, variance, average, out=variance)
        return forward(module, inputs)

    return run


def _variances(
    statistics: RunningStatistics, module: nn.Module
) -> list[tuple[Tensor, Tensor]]:
    owners = batch_norms(module)
    found = []
    for name in statistics.names:
        owner, _, kind = name.rpartition(".")
        if kind == "running_var" and owner in owners:  # else a task's own layer
            # .data: what is written must not look like a change of the merge.
            value = cast(Tensor, owners[owner].running_var).data
            found.append((value, statistics.average[name].to(value)))
    return found


def with_batch_statistics(forward: Callable) -> Callable:
    """A forward function in which batch norm uses and keeps no running statistics."""

    def run(module: nn.Module, inputs: Tensor) -> Tensor:
        layers = list(batch_norms(module).values())
        try:
            for layer in layers:
                layer.training, layer.track_running_stats = True, False
            return forward(module, inputs)
        finally:
            for layer in layers:
                layer.training, layer.track_running_stats = False, True

    return run
