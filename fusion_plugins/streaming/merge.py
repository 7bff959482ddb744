"""One merge from files to files: statistics, rule, shards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..common import get_logger
from ..task_vectors import Block, TaskVectors
from ..task_vectors.blocks import row_slices
from ..task_vectors.checks import is_mergeable
from ..task_vectors.files import TensorSpec
from ..task_vectors.merge import apply_rule, is_finite
from .output import OutputFolder
from .shards import Shard, ShardWriter, plan_shards

log = get_logger(__name__)

Rule = Callable[[Block], Tensor]  # a block -> merged rows in the compute dtype


def result_shards(
    task_vectors: TaskVectors, dtype: torch.dtype | None, limit: int
) -> list[Shard]:
    """The files of the merged model.

    Args:
        task_vectors: Base and experts. Tied weights are written once, as in the base.
        dtype: Of the floating tensors; None for each one's dtype in the base.
        limit: Bytes per file.
    """
    aliases = {name for group in task_vectors.tied_groups for name in group[1:]}
    specs = {}
    for name in task_vectors.base_names:
        if name not in aliases:
            spec = TensorSpec(task_vectors.shape(name), task_vectors.dtype(name))
            wanted = dtype if dtype is not None and is_mergeable(spec) else spec.dtype
            specs[name] = TensorSpec(spec.shape, wanted)
    return plan_shards(specs, limit)


def write_shards(
    task_vectors: TaskVectors,
    rule: Rule,
    shards: Sequence[Shard],
    output: OutputFolder,
    progress: bool = False,
) -> None:
    """Merge every tensor of the shards that are not there yet, and write them.

    Raises:
        ValueError: A checkpoint holds NaN or Inf, or the disk is too small.
        OSError: The disk fills up meanwhile.
    """
    missing = [shard for shard in shards if not output.is_done(shard)]
    if len(missing) < len(shards):
        done = len(shards) - len(missing)
        log.info("%d of %d shards are there already.", done, len(shards))
    output.check_space(sum(shard.nbytes for shard in missing))
    merged = set(task_vectors.keys)
    keys = [key for shard in missing for key in shard.specs if key in merged]
    with _Writers(task_vectors, missing, output) as writers:
        with task_vectors.progress("Merge", keys, progress) as bar:
            apply_rule(task_vectors, rule, writers.write, keys, bar)
        writers.finish_rest()


class _Writers:
    """The shards being written; each is opened by its first tensor."""

    def __init__(
        self, task_vectors: TaskVectors, shards: Sequence[Shard], output: OutputFolder
    ):
        self._task_vectors, self._shards, self._output = task_vectors, shards, output
        self._shard_of = {name: shard for shard in shards for name in shard.specs}
        self._open: dict[str, ShardWriter] = {}
        self._finished: set[str] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> _Writers:
        return self

    def __exit__(self, *_: Any) -> None:
        for writer in self._open.values():
            writer.abandon()

    def write(self, block: Block, merged: Tensor) -> None:
        """Put a block's merged rows into its file."""
        if not merged.numel():
            return
        shard = self._shard_of[block.key]
        first_row = block.rows.start if len(shard.specs[block.key].shape) > 1 else 0
        rows = _stored(block.key, merged, shard.specs[block.key].dtype)
        if self._writer(shard).write(block.key, first_row, rows):
            self._finish(shard)

    def finish_rest(self) -> None:
        """Finish files that no merged row completed, such as those of masks alone."""
        for shard in self._shards:
            if shard.file not in self._finished:
                self._writer(shard)
                self._finish(shard)

    def _writer(self, shard: Shard) -> ShardWriter:
        with self._lock:
            if shard.file not in self._open:
                writer = ShardWriter(shard, self._output.partial(shard))
                self._open[shard.file] = writer
                self._copy_unmerged(shard, writer)
            return self._open[shard.file]

    def _copy_unmerged(self, shard: Shard, writer: ShardWriter) -> None:
        merged = set(self._task_vectors.keys)
        for name in shard.specs:
            if name not in merged:
                for rows in row_slices(shard.specs[name].shape):
                    whole = len(shard.specs[name].shape) < 2
                    values = self._task_vectors.base(name, None if whole else rows)
                    other = values.dtype != shard.specs[name].dtype
                    if other and is_finite(values):  # else meant, as in a mask
                        values = _stored(name, values, shard.specs[name].dtype)
                    writer.write(name, 0 if whole else rows.start, values)

    def _finish(self, shard: Shard) -> None:
        with self._lock:
            if shard.file in self._finished:
                return
            self._finished.add(shard.file)
        writer = self._open[shard.file]
        if not writer.is_full:
            raise RuntimeError(f"{shard.file} lacks rows although all were merged.")
        writer.finish()
        self._output.publish(shard)
        with self._lock:
            del self._open[shard.file]


def _stored(name: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in the dtype of the file; ValueError if that makes NaN or Inf of them."""
    stored = values.to(dtype)
    if is_finite(stored):
        return stored
    if is_finite(values):
        raise ValueError(
            f"The merged tensor '{name}' reaches {values.abs().max():.4g}, more than"
            f" {dtype} holds ({torch.finfo(dtype).max:.4g}). Set method.dtype=bfloat16 or"
            " float32."
        )
    raise ValueError(
        f"The merged tensor '{name}' holds NaN or Inf: its weights (the scaling factor, or"
        " AWD's coefficients after a descent that diverged) are too large. Lower"
        " method.base.scaling_factor or method.lr."
    )
