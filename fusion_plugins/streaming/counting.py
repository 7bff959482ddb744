"""The k-th smallest magnitude of task vectors that are never in memory, by counting.

A magnitude's float32 bits, read as an integer, order like the magnitude itself. In a window
of them every value is counted, outside only what lies below and above. A sample of rows
says where the k-th smallest is about; one walk over everything with the window there finds
it exactly. If it lies beside the window, one more walk does; if it lies elsewhere, two after
that: through all values in steps, and through the step that holds it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..task_vectors import Block, TaskVectors
from ..task_vectors.blocks import spread_slices

# Values (or steps of values) in a window: 0.8 to 1.6 percent to both sides of its middle.
_WINDOW = 2**18
_STEP_BITS = 13  # steps with which a window holds all 31 bits
_SAMPLE = 2**23  # entries of each task vector, and at least one of so many:
_ONE_OF = 2**7
_SAMPLE_PLACE = 2**13  # entries of it in one place

Windows = tuple[Tensor, Tensor]  # first bits, and bits of a step, int64, shape (tasks,)
Count = Callable[[Windows], Tensor]


def whole_range(tasks: int) -> Windows:
    """Windows of all magnitudes, in steps."""
    return torch.zeros(tasks).long(), torch.full((tasks,), _STEP_BITS)


def around(bits: Tensor) -> Windows:
    """Windows around these magnitudes' bits."""
    return (bits - _WINDOW // 2).clamp_min(0), torch.zeros_like(bits)


def counts_shape(tasks: int) -> tuple[int, int]:
    """Per task: entries below its window, of each value in it, and above it."""
    return tasks, _WINDOW + 2


def count_in(windows: Windows, stack: Tensor, counts: Tensor) -> None:
    """Add the magnitudes of some entries to `counts`.

    Args:
        windows: Where to count each value.
        stack: Float32, shape (tasks, entries).
        counts: Of :func:`counts_shape`.
    """
    first, step_bits = windows
    ends = first + (_WINDOW << step_bits)
    places = (first.tolist(), ends.tolist(), step_bits.tolist())
    rows = zip(stack.numpy(), counts.numpy(), *places, strict=True)
    for values, total, start, end, step in rows:
        row = np.abs(values).view(np.int32)
        small = row < start
        found = row[small != (row < end)] - start
        np.add.at(total, (found >> step) + 1, 1)
        below = np.count_nonzero(small)
        total[0] += below
        total[-1] += len(row) - below - len(found)


def search(count: Count, keep_ratio: float, windows: Windows) -> Tensor:
    """Bits of the magnitude from which on a task's entry is kept, shape (tasks,).

    Args:
        count: Walks over the entries; windows -> counts.
        keep_ratio: Share of the entries to keep. The one at position
            n - floor(n * keep_ratio) is the smallest that is kept.
        windows: Where to look first.
    """
    near = True  # a first miss is mostly a near one
    while True:
        counts, (start, step_bits) = count(windows), windows
        entries = int(counts[0].sum())
        rank = max(entries - int(entries * keep_ratio), 1)
        place = (counts.cumsum(1) < rank).sum(1) - 1
        first = start + (place << step_bits)
        missed = (place < 0) | (place >= _WINDOW)
        if not (missed.any() or step_bits.any()):
            return first
        beside = start + torch.where(place < 0, -_WINDOW, _WINDOW)
        again = beside.clamp_min(0) if near else torch.zeros_like(start)
        bits = torch.full_like(start, 0 if near else _STEP_BITS)
        windows = torch.where(missed, again, first), torch.where(missed, bits, 0)
        near = near and not missed.any()


def sampled_rows(task_vectors: TaskVectors) -> dict[str, list[slice]]:
    """Rows all over the model, some thousand entries at a time."""
    shapes = {key: task_vectors.shape(key) for key in task_vectors.keys}
    every = min(max(task_vectors.numel() // _SAMPLE, 1), _ONE_OF)
    return spread_slices(shapes, _SAMPLE_PLACE, every)


def counted(
    task_vectors: TaskVectors,
    count: Callable[..., None],
    shapes: Sequence[tuple[int, ...]],
    sample: Mapping[str, Sequence[slice]] | None = None,
    what: str = "",
    progress: bool = False,
) -> list[Tensor]:
    """What `count` adds up over all blocks; one walk.

    Args:
        task_vectors: Base and experts.
        count: Called with a block and tensors to add to.
        shapes: Of these tensors, int64.
        sample: Rows to walk over, by tensor; all by default.
        what: Title of the progress bar.
        progress: Show it.
    """
    own, parts = threading.local(), []
    with task_vectors.progress(what, task_vectors.keys, progress) as bar:

        @torch.no_grad()  # threads start with their own mode
        def add(blocks: Iterator[Block]) -> None:
            if not hasattr(own, "part"):
                own.part = [torch.zeros(shape, dtype=torch.int64) for shape in shapes]
                parts.append(own.part)
            for block in blocks:
                count(block, *own.part)
                bar.update(block.nbytes)

        if sample is None:
            task_vectors.for_each_key(add)
        else:
            task_vectors.for_each_key(add, tuple(sample), sample.__getitem__)
    return [sum(part) for part in zip(*parts, strict=True)]
