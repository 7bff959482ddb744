"""How many tasks share one forward: as many as their activations allow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .memory import activation_bytes
from .predictor import Predictor
from .schedule import Draws

# Activations of one forward on the CPU: a little more than the task vectors take, within
# these bounds. More tasks at once are faster; peak memory stays below other loops'.
_LEAST_CPU_BYTES, _MOST_CPU_BYTES = 128 * 2**20, 2 * 2**30
_GPU_SHARE = 0.25  # of the memory that is free once the task vectors are loaded


@dataclass(frozen=True)
class Groups:
    """Cuts a step's draws into groups run in one forward each.

    Attributes:
        size: Most tasks in one forward.
        activations: Bytes that autograd keeps for one task's share of a step.
    """

    size: int
    activations: int

    def __call__(self, draws: Draws) -> Iterator[Draws]:
        return (draws[i : i + self.size] for i in range(0, len(draws), self.size))


def plan_groups(predictor: Predictor, first: Draws, batch_tasks: str | bool) -> Groups:
    """How a step's draws are cut into groups.

    Gradients are the same either way; only speed and memory differ.

    Args:
        predictor: With merged weights in place.
        first: The first step's draws, used to measure activations.
        batch_tasks: True: all tasks at once; False: one by one; ``auto``: as many as fit
            a share of the memory, one by one where batch norm would mix their statistics.

    Raises:
        ValueError: Another value, or True with batch norm in training mode.
    """
    if batch_tasks not in ("auto", True, False):
        raise ValueError(
            f"batch_tasks is {batch_tasks!r}, expected 'auto', true or false."
        )
    own_layers = any(task.activate is not None for task in predictor.tasks)
    if batch_tasks is True and own_layers:
        raise ValueError(
            "batch_tasks=true cannot work here: each task has layers of its own inside the"
            " model. Use batch_tasks=auto."
        )
    mixes = own_layers or _mixes_samples(predictor.weights.module)
    if batch_tasks is True and mixes:
        raise ValueError(
            "batch_tasks=true would mix the tasks' batch statistics: the model has batch"
            " norm in training mode. Use batch_tasks=false, or evaluation mode."
        )
    per_task = _activation_bytes(predictor, first[0])
    if batch_tasks is True:
        return Groups(len(predictor.tasks), per_task)
    if batch_tasks is False or mixes or len(first) == 1:
        return Groups(1, per_task)
    size = max(int(_activation_budget(predictor) // max(per_task, 1)), 1)
    return Groups(_smallest(predictor, min(size, len(first))), per_task)


def _smallest(predictor: Predictor, size: int) -> int:
    """The same on all processes, or they would wait for each other's sums for ever."""
    if predictor.fabric.world_size == 1:
        return size
    sizes = torch.tensor(size, device=predictor.weights.device)
    predictor.fabric.all_reduce(sizes, reduce_op="min")  # in place
    return int(sizes)


def _mixes_samples(module: nn.Module) -> bool:
    return any(isinstance(m, _BatchNorm) and m.training for m in module.modules())


def _activation_budget(predictor: Predictor) -> float:
    device = predictor.weights.device
    if device.type == "cuda":
        return _budget(device)
    stored = predictor.weights.stored_bytes
    return min(_budget(device), max(stored * 5 // 4, _LEAST_CPU_BYTES))


def _budget(device: torch.device) -> float:
    if device.type != "cuda":
        return _MOST_CPU_BYTES
    free, total = torch.cuda.mem_get_info(device)
    share_of = getattr(torch.cuda, "get_per_process_memory_fraction", None)
    if share_of is not None:  # what a process may use can be capped
        free = min(free, share_of(device) * total - torch.cuda.memory_allocated(device))
    return _GPU_SHARE * max(free, 0)


def _activation_bytes(predictor: Predictor, draw: tuple[int, list[int]]) -> int:
    """Bytes that autograd keeps for one task's share of a step."""
    task, draws = draw
    inputs = predictor.tasks[task].source.batch(draws).inputs
    module = predictor.weights.module
    predictor.activate(task)
    with predictor.fabric.autocast():
        return activation_bytes(module, lambda: predictor.forward(module, inputs))
