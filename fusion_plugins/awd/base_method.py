"""The method that merges the disentangled experts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from importlib import import_module
from inspect import signature
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from fusion_bench import BaseAlgorithm, BaseModelPool
from fusion_bench.compat.method import load_algorithm_from_config
from fusion_bench.method import SimpleAverageAlgorithm, TaskArithmeticAlgorithm
from fusion_bench.utils import instantiate
from fusion_bench.utils.instantiate_utils import set_print_function_call
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ..common.options import plain
from ..common.upstream import give_fabric, merged_parts, program_of
from ..pools.family import class_name
from ..pools.loading import load_module
from ..pools.replaced import with_experts
from ..task_vectors import TaskVectors, merge_block
from .disentangle import Disentanglement

# Task Arithmetic's usual scaling, and FusionBench's default.
_DEFAULT_SCALING = 0.3
# By name: its module imports datasets and peft, a second that other bases need not wait.
_TIES = "fusion_bench.method.ties_merging.ties_merging.TiesMergingAlgorithm"


def build_base_method(base: Any, program: Any, fabric: Fabric) -> BaseAlgorithm:
    """The method that merges, wired to the running program.

    Args:
        base: A method's config, an algorithm, or None for Task Arithmetic.
        program: Of the method that uses it.
        fabric: Likewise.
    """
    if base is None:
        base = TaskArithmeticAlgorithm(scaling_factor=_DEFAULT_SCALING)
    elif isinstance(base, Mapping):
        base = _from_config(OmegaConf.create(dict(base)))
    if class_name(type(base)) == _TIES and base.threshold in (1, 100):
        # FusionBench's asks for the 0th smallest entry; so it keeps every one too.
        base = copy(base)
        base.threshold = math.nextafter(1.0, 0.0)
    program_of.offer(base, program)
    give_fabric(base, fabric)
    return base


def base_config(base: Any) -> dict[str, Any]:
    """The config of such a method."""
    if base is None:
        base = TaskArithmeticAlgorithm(scaling_factor=_DEFAULT_SCALING)
    return dict(base if isinstance(base, Mapping) else plain(base.config))


def check_numbers(config: Mapping[str, Any]) -> None:
    """Look at the options of a FusionBench method, which checks none itself.

    Args:
        config: Of the method; one without ``_target_`` is not looked at.

    Raises:
        ValueError: An option that its class declares as a number is text, a list, true or
            false, NaN, Inf, or nothing where its class knows no such value.
    """
    if "_target_" not in config:
        return
    module, _, owner = str(config["_target_"]).rpartition(".")
    try:
        kind = getattr(import_module(module), owner)
        made = getattr(kind, "__init__", kind)
        hints, options = get_type_hints(made), signature(made).parameters
    except (AttributeError, ImportError, NameError, ValueError):
        return  # said when the method is built; or a type for type checkers alone
    for name, hint in hints.items():
        kinds = {hint, *get_args(hint)}
        value = config.get(name)
        odd = isinstance(value, float) and not math.isfinite(value)
        if name in config and value is None:
            odd = type(None) not in kinds and options[name].default is not None
        number = bool(kinds & {int, float}) and kinds <= {int, float, type(None), hint}
        if get_origin(hint) in (None, Union, UnionType):  # no list of numbers
            odd = odd or isinstance(value, (bool, Sequence, Mapping))
        if number and (odd or type(value) is str):
            raise ValueError(f"{owner}: {name} is {value!r}, expected a number.")


def _from_config(config: DictConfig) -> BaseAlgorithm:
    if "_target_" not in config:
        return load_algorithm_from_config(config)
    check_numbers(config)
    with set_print_function_call(False):
        return instantiate(config, _recursive_=config.get("_recursive_", False))


def linear_weights(
    method: BaseAlgorithm, module: nn.Module | None, tasks: int
) -> Tensor | None:
    """Coefficient per task if `method` is a plain weighted sum of task vectors.

    Returns:
        Shape (tasks,), float64; None for every other method, which then gets a pool of
        disentangled experts.
    """
    # Exactly these classes: a subclass may do more than a weighted sum.
    if type(method) is TaskArithmeticAlgorithm:
        scaling = float(method.config.scaling_factor)
        return torch.full((tasks,), scaling, dtype=torch.float64, device="cpu")
    partial = merged_parts(module, None) is not None
    if type(method) is SimpleAverageAlgorithm and not partial:
        return torch.full((tasks,), 1 / tasks, dtype=torch.float64, device="cpu")
    return None


def disentangled_pool(
    modelpool: BaseModelPool, task_vectors: TaskVectors, result: Disentanglement
) -> BaseModelPool:
    """The pool with every expert replaced by base + its disentangled task vector.

    Delta is materialised once (one model in float32); experts are made when asked for.
    """
    delta = _materialise_delta(task_vectors, result)
    ties = {name: group[0] for group in task_vectors.tied_groups for name in group}

    @torch.no_grad()
    def make_expert(name: str) -> nn.Module:
        expert = load_module(modelpool, name)
        done = set()
        for tensor_name, tensor in expert.state_dict(keep_vars=True).items():
            key = ties.get(tensor_name, tensor_name)
            # Names tied in the base may be equal copies in an expert: ask the storage.
            place = tensor.data_ptr()
            if key in delta and place not in done:
                done.add(place)
                tensor.data.sub_(delta[key].to(tensor))
        return expert

    return with_experts(modelpool, make_expert)


@torch.no_grad()
def _materialise_delta(
    task_vectors: TaskVectors, result: Disentanglement
) -> dict[str, Tensor]:
    delta = {}
    for block in task_vectors.blocks(result.gram.keys):
        coefficients = result.delta_coefficients(block.key)
        without_base = replace(block, base=torch.zeros_like(block.base))
        redundant = merge_block(without_base, coefficients)
        shape = task_vectors.shape(block.key)
        if block.key not in delta:
            delta[block.key] = redundant.new_empty(shape)
        tensor = delta[block.key]
        place = tensor if tensor.dim() < 2 else tensor[block.rows]
        place.copy_(redundant.view(place.shape))
    return delta
