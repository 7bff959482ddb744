"""Base and experts as task vectors, walked block by block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from . import checks
from .blocks import Block, Workers, block_entries, read_blocks, row_slices
from .checkpoint import Checkpoint, SafetensorsCheckpoint, module_checkpoint
from .names import named_like

Result = TypeVar("Result")
Rows = Callable[[str], Iterable[slice]]


class TaskVectors:
    """A pretrained model and its experts, seen as base + task vectors.

    Nothing is loaded here but names and shapes. Tied weights count once, under their
    first name; non-floating tensors, what spectral_norm estimates, and what matches `keep`
    stay as in the base.

    Args:
        base: The pretrained model.
        experts: Task name -> fine-tuned model. Its order fixes the order of tasks.
        keep: Shell-style patterns of tensors to leave as they are in the base; experts
            may lack them, have them in another shape, or have them alone.

    Raises:
        ValueError: No expert, or names, shapes, dtypes or ties that do not fit; the
            message names model, tensor, what was found and what to do.
    """

    def __init__(
        self,
        base: Checkpoint,
        experts: Mapping[str, Checkpoint],
        keep: Sequence[str] = (),
    ):
        checks.check_experts_given(experts)
        everything = {n: None for c in (base, *experts.values()) for n in c.specs}
        keep = checks.used_patterns("keep", keep, tuple(everything))
        self._base, self._experts = base, dict(experts)
        self.tied_groups = base.tied_groups()
        for expert in self._experts.values():
            checks.check_names(base, expert, self.tied_groups, keep)
            for group in self.tied_groups:
                checks.check_still_tied(expert, group)
        aliases = {name for group in self.tied_groups for name in group[1:]}
        names_of = {group[0]: group for group in self.tied_groups}
        keys = [
            name
            for name, spec in base.specs.items()
            if checks.is_mergeable(spec)
            and name not in aliases
            and not any(checks.matches(n, keep) for n in names_of.get(name, [name]))
        ]
        apart = [n for n in keys if checks.is_singular_vector(n, base.specs)]
        checks.say_singular(base, apart)
        self.keys = tuple(name for name in keys if name not in apart)
        self._names_in = {
            task: self._resolve_names(expert) for task, expert in self._experts.items()
        }
        if not self.keys:
            raise ValueError(
                f"{base.label} has no floating tensor to merge: it holds"
                f" {len(base.specs)} tensor(s) and `keep` is {list(keep)}."
            )

    def _resolve_names(self, expert: Checkpoint) -> dict[str, str]:
        group_of = {group[0]: group for group in self.tied_groups}
        names = {}
        for key in self.keys:
            candidates = group_of.get(key, [key])
            names[key] = next(name for name in candidates if name in expert.specs)
            checks.check_specs(self._base, expert, key, names[key])
        return names

    @classmethod
    def from_modules(
        cls, base: nn.Module, experts: Mapping[str, nn.Module], keep: Sequence[str] = ()
    ) -> TaskVectors:
        """From models in memory; they are read, never changed."""
        return cls(
            module_checkpoint(base, "the base"),
            {t: module_checkpoint(m, f"expert '{t}'") for t, m in experts.items()},
            keep,
        )

    @classmethod
    def from_checkpoints(
        cls,
        base: str | Path,
        experts: Mapping[str, str | Path],
        keep: Sequence[str] = (),
    ) -> TaskVectors:
        """From safetensors files or folders on disk, read in place."""
        ours, label = SafetensorsCheckpoint(base, "the base"), "expert '{}'".format
        theirs = {t: SafetensorsCheckpoint(p, label(t)) for t, p in experts.items()}
        return cls(ours, {t: named_like(ours, e) for t, e in theirs.items()}, keep)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names, in the order of every (tasks, ...) tensor of this package."""
        return tuple(self._experts)

    @property
    def base_names(self) -> tuple[str, ...]:
        """Every tensor name of the base, the unmerged and the tied ones included."""
        return tuple(self._base.specs)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._base.specs[key].shape

    def dtype(self, key: str) -> torch.dtype:
        return self._base.specs[key].dtype

    def base(self, name: str, rows: slice | None = None) -> Tensor:
        """The base's own tensor or rows of it, in its own dtype; treat it as read-only."""
        return self._base.read(name, rows)

    def numel(self) -> int:
        """Entries of one task vector."""
        return sum(torch.Size(self.shape(key)).numel() for key in self.keys)

    def entry_bytes(self, key: str) -> int:
        """Bytes that one entry of a tensor takes in the base and all experts."""
        experts = (e.specs[self._names_in[t][key]] for t, e in self._experts.items())
        return sum(s.dtype.itemsize for s in (self._base.specs[key], *experts))

    def progress(self, what: str, keys: Sequence[str], shown: bool) -> tqdm:
        """A bar in bytes read, for one walk over `keys`."""
        total = sum(
            torch.Size(self.shape(key)).numel() * self.entry_bytes(key) for key in keys
        )
        return tqdm(
            total=total,
            desc=what,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            disable=not shown,
        )

    def select(self, include: Sequence[str], exclude: Sequence[str]) -> tuple[str, ...]:
        """Keys that match an `include` pattern (all if empty) and no `exclude` one.

        Raises:
            ValueError: A pattern matches nothing, or nothing is left.
        """
        include = checks.used_patterns("include", include, self.keys)
        exclude = checks.used_patterns("exclude", exclude, self.keys)
        chosen = tuple(
            key
            for key in self.keys
            if (not include or checks.matches(key, include))
            and not checks.matches(key, exclude)
        )
        if not chosen:
            raise ValueError(
                f"include={list(include)} and exclude={list(exclude)} leave none of the"
                f" {len(self.keys)} tensors."
            )
        return chosen

    def compute_dtype(self, key: str) -> torch.dtype:
        """float32, or wider where a checkpoint is."""
        dtype = torch.promote_types(self.dtype(key), torch.float32)
        for task, expert in self._experts.items():
            spec = expert.specs[self._names_in[task][key]]
            dtype = torch.promote_types(dtype, spec.dtype)
        return dtype

    def blocks(self, keys: Sequence[str] | None = None) -> Iterator[Block]:
        """Walk over the tensors, all tasks together, a bounded number of rows at a time."""
        buffers: dict[torch.dtype, Tensor] = {}
        for key in self.keys if keys is None else keys:
            yield from self._blocks_of(key, buffers)

    def _blocks_of(
        self, key: str, buffers: dict[torch.dtype, Tensor], rows_of: Rows | None = None
    ) -> Iterator[Block]:
        names = [(self._base, key)]
        names += [(e, self._names_in[task][key]) for task, e in self._experts.items()]
        readers = [(c.reader(name), c.specs[name].dtype) for c, name in names]
        shape, dtype = self.shape(key), self.compute_dtype(key)
        if rows_of is None:
            rows = row_slices(shape, block_entries(shape, len(readers)))
        else:
            rows = iter(rows_of(key))
        entry_bytes = self.entry_bytes(key)
        for some, base, stack in read_blocks(shape, rows, readers, dtype, buffers):
            yield Block(key, some, base, stack, base.numel() * entry_bytes)

    def for_each_key(
        self,
        work: Callable[[Iterator[Block]], Result],
        keys: Sequence[str] | None = None,
        rows_of: Rows | None = None,
    ) -> list[Result]:
        """Run `work` on each tensor's blocks, several tensors at a time, one core each.

        Reading and the small operations of a walk gain more from several tensors at once
        than from several cores on one, and the result does not depend on their number.

        Args:
            work: Called with the blocks of one tensor, from several threads.
            keys: Tensors to walk; all by default.
            rows_of: Tensor name -> the rows of each block.

        Returns:
            What `work` returned, in the order of `keys`.
        """
        walked = self.keys if keys is None else keys
        results: dict[str, Result] = {}
        own = threading.local()  # each thread's buffers

        def run(key: str) -> None:
            buffers = own.__dict__.setdefault("buffers", {})
            results[key] = work(self._blocks_of(key, buffers, rows_of))

        Workers().each(run, walked)
        return [results[key] for key in walked]

    def raise_not_finite(self, block: Block) -> None:
        """Name the model at fault for a block that holds NaN or Inf."""
        checks.check_finite(self._base, block.key)
        for task, expert in self._experts.items():
            checks.check_finite(expert, self._names_in[task][block.key])
