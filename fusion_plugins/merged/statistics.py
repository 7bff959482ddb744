"""Batch normalisation's running statistics: which ones a merged model uses.

They are no weights: nothing learns them, and adding their differences can make a variance
negative. By default a merged model has the plain average of the experts' statistics.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..common import get_logger
from ..task_vectors import TaskVectors

log = get_logger(__name__)


class BatchNorm(Enum):
    """Which running statistics a merged model has."""

    #: The plain average of the experts'.
    AVERAGE = "average"
    #: Base plus coefficients times differences, like any weight, as FusionBench's own
    #: methods do; a variance that is not positive becomes the experts' average.
    MERGED = "merged"
    #: The base's.
    PRETRAINED = "pretrained"
    #: Estimated anew on unlabelled samples, one set for all tasks.
    RECALIBRATED = "recalibrated"
    #: Estimated anew, one set per task.
    RECALIBRATED_PER_TASK = "recalibrated_per_task"

    @property
    def needs_samples(self) -> bool:
        """Whether the statistics are estimated."""
        return self in (BatchNorm.RECALIBRATED, BatchNorm.RECALIBRATED_PER_TASK)

    @property
    def per_task(self) -> bool:
        """Whether every task gets statistics of its own."""
        return self is BatchNorm.RECALIBRATED_PER_TASK


_STATISTICS = ("running_mean", "running_var")


def batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """Layers with running statistics, by module path."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    }


def statistic_names(module: nn.Module) -> list[str]:
    """State dict names of all running means and variances."""
    owners = batch_norms(module)
    return [f"{o}.{s}".removeprefix(".") for o in owners for s in _STATISTICS]


class RunningStatistics:
    """What a merge does with the running statistics of a pool's models.

    Args:
        choice: What to do with them.
        module: The pretrained model.
        task_vectors: Base and experts; tensors it leaves out stay as in the base.

    Attributes:
        names: Names of the statistics; empty for models without batch normalisation.
        average: Name -> the plain average of the experts' values.
    """

    def __init__(self, choice: BatchNorm, module: nn.Module, task_vectors: TaskVectors):
        self.choice = choice
        known = set(task_vectors.keys)
        self.names = [name for name in statistic_names(module) if name in known]
        self._base = {name: task_vectors.base(name).clone() for name in self.names}
        self.average = {
            block.key: (block.base + block.task_vectors.mean(dim=0))
            .flatten()
            .to(task_vectors.dtype(block.key))
            for block in task_vectors.blocks(self.names)
        }

    @property
    def recalibrates(self) -> bool:
        """Whether samples are needed."""
        return bool(self.names) and self.choice.needs_samples

    def card_notes(self) -> list[str]:
        """A sentence for the model card, if there is something to say."""
        used = f"Running statistics of batch normalisation: {self.choice.value}."
        return [used] if self.names else []

    @property
    def apart(self) -> list[str]:
        """Names that are no part of the merge: not disentangled, trimmed or scaled."""
        return [] if self.choice is BatchNorm.MERGED else self.names

    @torch.no_grad()
    def write(self, module: nn.Module) -> None:
        """Put the chosen statistics into a merged module; estimated ones come later."""
        if self.choice is BatchNorm.MERGED:
            self.repair(module)
            return
        values = self._base if self.choice is BatchNorm.PRETRAINED else self.average
        state = module.state_dict(keep_vars=True)
        for name in self.names:
            if name in state:  # some methods return another kind of module
                state[name].copy_(values[name].view(state[name].shape))

    @torch.no_grad()
    def repair(self, module: nn.Module) -> None:
        """Make merged variances positive, with a warning; other choices need none."""
        state, repaired = module.state_dict(keep_vars=True), {}
        for name in self.names if self.choice is BatchNorm.MERGED else ():
            if name not in state:
                continue
            bad = state[name] <= 0
            if name.endswith(_STATISTICS[1]) and bad.any():
                repaired[name] = int(bad.sum())
                average = self.average[name].to(state[name])
                state[name].copy_(torch.where(bad, average, state[name]))
        if repaired:
            log.warning(
                "Merging made %d running variances in %d layers zero or negative, as in"
                " '%s'; they are set to the experts' average. Use batch_norm=average, or"
                " batch_norm=recalibrated_per_task.",
                sum(repaired.values()),
                len(repaired),
                next(iter(repaired)),
            )
