"""The linear merge: base + sum over tasks of coefficient times task vector."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from tqdm.auto import tqdm

from .blocks import Block, merge_block
from .checks import matches
from .collection import TaskVectors
from .memory import check_target

# Coefficients per tensor name: shape (tasks,), or (tasks, rows) for one per row.
Coefficients = Mapping[str, Tensor]


def as_coefficients(task_vectors: TaskVectors, values: ArrayLike) -> dict[str, Tensor]:
    """Spread task-wise (tasks,) or layer-wise (tasks, tensors) values over the tensors.

    Args:
        task_vectors: Whose tensors.
        values: Coefficients; a tensor, an array or a list.

    Raises:
        ValueError: The shape is neither, or they are no real numbers.
    """
    values = _real_numbers(values)
    tasks, keys = len(task_vectors.tasks), task_vectors.keys
    if tuple(values.shape) == (tasks,):
        return {key: values for key in keys}
    if tuple(values.shape) == (tasks, len(keys)):
        return {key: values[:, column] for column, key in enumerate(keys)}
    raise ValueError(
        f"coefficients have shape {tuple(values.shape)}, expected ({tasks},) for one per"
        f" task or ({tasks}, {len(keys)}) for one per task and tensor. Saved ones fit only"
        " the pool they were learned on."
    )


def _real_numbers(values: Any) -> Tensor:
    found = values
    if not isinstance(found, Tensor):
        with suppress(TypeError, ValueError, RuntimeError):
            found = torch.as_tensor(np.asarray(values), device="cpu")
    if not isinstance(found, Tensor) or found.is_complex():
        raise ValueError(
            f"coefficients are {values!r}, expected real numbers: a tensor, an array or a"
            " list."
        )
    return found


def merge_each(
    task_vectors: TaskVectors,
    coefficients: Coefficients,
    write: Callable[[Block, Tensor], None],
    progress: bool = False,
) -> None:
    """Merge tensor by tensor, handing each block's merged rows to `write`.

    Args:
        task_vectors: Base and experts.
        coefficients: Tensor name -> (tasks,) or (tasks, rows).
        write: Called with a block and its merged rows in the base's dtype, from several
            threads, never twice for one place.
        progress: Show a progress bar in bytes read.

    Raises:
        ValueError: Coefficients are missing or of another shape, or a checkpoint holds
            NaN or Inf.
    """
    for key in task_vectors.keys:
        check_coefficients(task_vectors, key, coefficients.get(key))
    with task_vectors.progress("Merge", task_vectors.keys, progress) as bar:
        apply_rule(
            task_vectors,
            lambda block: merge_block(block, coefficients[block.key]),
            lambda block, merged: write(
                block, _rounded(block, merged, task_vectors.dtype(block.key), "base")
            ),
            task_vectors.keys,
            bar,
        )


def apply_rule(
    task_vectors: TaskVectors,
    rule: Callable[[Block], Tensor],
    write: Callable[[Block, Tensor], None],
    keys: Sequence[str],
    bar: tqdm,
) -> None:
    """Hand what `rule` makes of each block to `write`, several tensors at a time.

    Args:
        task_vectors: Base and experts.
        rule: A block -> merged rows in the compute dtype.
        write: Called with a block and its merged rows, from several threads.
        keys: Tensors to walk.
        bar: Moved on by the bytes read.

    Raises:
        ValueError: A checkpoint holds NaN or Inf.
    """

    @torch.no_grad()  # threads start with their own mode
    def merge_tensor(blocks: Iterator[Block]) -> None:
        for block in blocks:
            merged = rule(block)
            # A NaN or Inf anywhere makes the sum one; cheaper than a mask.
            if not math.isfinite(merged.sum()):
                task_vectors.raise_not_finite(block)
            write(block, merged)
            bar.update(block.nbytes)

    task_vectors.for_each_key(merge_tensor, keys)


def _rounded(block: Block, merged: Tensor, dtype: torch.dtype, giver: str) -> Tensor:
    rounded = merged.to(dtype)
    if rounded.dtype == torch.float16 and not is_finite(rounded):
        raise ValueError(
            f"The merged tensor '{block.key}' overflows float16, whose largest number is"
            f" {torch.finfo(torch.float16).max:g}. Give the {giver} in bfloat16 or"
            " float32, or a smaller scaling."
        )
    return rounded


def _put(tensor: Tensor, block: Block, merged: Tensor) -> None:
    place = tensor if tensor.dim() < 2 else tensor[block.rows]
    if merged.dtype != tensor.dtype:
        merged = _rounded(block, merged, tensor.dtype, "module")
    place.copy_(merged.view(place.shape))


def require_finite(module: nn.Module, advice: str, keep: Sequence[str] = ()) -> None:
    """Raise ValueError, with this `advice`, if a merged `module` holds NaN or Inf.

    Tensors that match `keep` are the base's own, and may.
    """
    for name, tensor in module.state_dict().items():
        kept = matches(name.removeprefix("trunk."), keep)  # of a tinted model
        if tensor.is_floating_point() and not kept and not is_finite(tensor):
            raise ValueError(
                f"The merged tensor '{name}' holds NaN or Inf in {tensor.dtype}. {advice}"
            )


def is_finite(tensor: Tensor) -> bool:
    """Whether it holds no NaN or Inf: they spoil the sum, as large numbers may too."""
    total = tensor.sum(dtype=torch.float32)
    return math.isfinite(total) or bool(torch.isfinite(tensor).all())


def check_coefficients(
    task_vectors: TaskVectors, key: str, values: Tensor | None
) -> None:
    """Raise ValueError unless `values` is (tasks,) or (tasks, rows) of the tensor."""
    if values is None:
        raise ValueError(
            f"There are no coefficients for tensor '{key}': use as_coefficients()."
        )
    tasks, shape = len(task_vectors.tasks), task_vectors.shape(key)
    rows = shape[0] if len(shape) > 1 else 1
    if tuple(values.shape) not in {(tasks,), (tasks, rows)}:
        raise ValueError(
            f"coefficients of '{key}' have shape {tuple(values.shape)}, expected"
            f" ({tasks},) or ({tasks}, {rows}) for (tasks,) or (tasks, rows)."
        )
    if not torch.isfinite(values).all():
        raise ValueError(
            f"coefficients of '{key}' hold NaN or Inf: {values.tolist()}. Check the"
            " scaling, or where they were saved."
        )


@torch.no_grad()
def merge_into(
    module: nn.Module,
    task_vectors: TaskVectors,
    coefficients: Coefficients,
    progress: bool = False,
) -> nn.Module:
    """Overwrite a module with the merged weights, tensor by tensor.

    The module may be the base itself: each row is read before it is written. Tied
    weights stay tied because their shared storage is written once.

    Args:
        module: Has every merged tensor of the base under the same name and shape.
        task_vectors: Base and experts.
        coefficients: Tensor name -> (tasks,) or (tasks, rows).
        progress: Show a progress bar.

    Returns:
        `module`.

    Raises:
        ValueError: The module or the coefficients do not fit, or a checkpoint holds NaN
            or Inf.
    """
    check_target(module, {key: task_vectors.shape(key) for key in task_vectors.keys})
    target = module.state_dict(keep_vars=True)
    merge_each(
        task_vectors,
        coefficients,
        lambda block, merged: _put(target[block.key].data, block, merged),
        progress,
    )
    return module


@torch.no_grad()
def merged_state_dict(
    task_vectors: TaskVectors, coefficients: Coefficients
) -> dict[str, Tensor]:
    """The merged model as a new state dict in the base's names, order and dtypes.

    Args:
        task_vectors: Base and experts.
        coefficients: Tensor name -> (tasks,) or (tasks, rows).
    """
    alias_of = {name: group[0] for group in task_vectors.tied_groups for name in group}
    merged: dict[str, Tensor] = {}
    for name in task_vectors.base_names:
        owner = alias_of.get(name, name)
        if owner not in merged:
            merged[owner] = task_vectors.base(owner).detach().clone()
        merged[name] = merged[owner]
    merge_each(
        task_vectors,
        coefficients,
        lambda block, rows: _put(merged[block.key], block, rows),
    )
    return merged
