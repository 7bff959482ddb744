"""From a FusionBench method to the rule that merges one block."""

from __future__ import annotations

import threading
from functools import cache

from fusion_bench import BaseAlgorithm
from fusion_bench.method import (
    SimpleAverageAlgorithm,
    TaskArithmeticAlgorithm,
    TiesMergingAlgorithm,
)
from torch import Tensor

from ..awd.base_method import linear_weights
from ..awd.disentangle import Disentanglement
from ..common.options import require_choice, require_number
from ..task_vectors import Block, TaskVectors, merge_block
from .merge import Rule
from .output import OutputFolder
from .ties import (
    MERGE_FUNCTIONS,
    TiesStatistics,
    majority_sign,
    task_vectors_of,
    ties_block_,
    ties_statistics,
)

_KNOWN = (TaskArithmeticAlgorithm, SimpleAverageAlgorithm, TiesMergingAlgorithm)


def check_base_method(method: BaseAlgorithm) -> None:
    """Raise ValueError unless the method can merge models that are never in memory."""
    if type(method) not in _KNOWN:
        raise ValueError(
            f"{type(method).__name__} needs whole models in memory; merging from files to"
            " files knows method@method.base=task_arithmetic, simple_average and"
            " ties_merging. For others use method=awd."
        )
    if type(method) is not SimpleAverageAlgorithm:
        name = "base.scaling_factor"
        require_number(name, method.config.scaling_factor, -float("inf"))
    if type(method) is TiesMergingAlgorithm:
        require_choice("merge_func", _merge_function(method), MERGE_FUNCTIONS)
        require_number("threshold", method.threshold, 0, 100, open_low=True)


def untouched(method: BaseAlgorithm) -> tuple[str, ...]:
    """Names of tensors that the method itself leaves as in the base."""
    if type(method) is TiesMergingAlgorithm:
        return tuple(method.remove_keys or ())
    return ()


def build_rule(
    method: BaseAlgorithm,
    task_vectors: TaskVectors,
    redundant: Disentanglement | None,
    output: OutputFolder,
    progress: bool = False,
) -> Rule:
    """How a block is merged; walks over the files if the method has to know all of them.

    Args:
        method: One that :func:`check_base_method` accepts.
        task_vectors: Base and experts.
        redundant: What to take from every task vector first; None for nothing.
        output: Keeps what was counted for a run that continues this one.
        progress: Show progress bars.
    """
    weights = linear_weights(method, None, len(task_vectors.tasks))
    if weights is not None:
        folded = {
            key: weights if redundant is None else redundant.fold(key, weights)
            for key in task_vectors.keys
        }
        return lambda block: merge_block(block, folded[block.key])
    ratio = method.threshold / (100 if method.threshold > 1 else 1)
    counted = output.kept(
        "ties", lambda: vars(ties_statistics(task_vectors, ratio, redundant, progress))
    )
    statistics, lock = TiesStatistics(**counted), threading.Lock()
    function, scaling = _merge_function(method), float(method.scaling_factor)

    def count() -> dict[str, Tensor]:
        known = statistics.thresholds
        return {"majority": majority_sign(task_vectors, known, redundant, progress)}

    @cache
    def count_majority() -> Tensor:
        with lock:  # one walk for all threads
            return output.kept("majority", count)["majority"]

    def rule(block: Block) -> Tensor:
        stack = task_vectors_of(block, redundant)
        merged = ties_block_(stack, statistics, function, count_majority)
        return block.base + scaling * merged.view(block.base.shape)

    return rule


def _merge_function(method: TiesMergingAlgorithm) -> str:
    return str(method.merge_func).split("-")[-1]  # FusionBench takes "dis-sum" too
