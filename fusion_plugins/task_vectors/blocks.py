"""Tensors of all models read together, a bounded number of rows at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")

# Entries of one tensor looked at together, and of all models together: bounds memory.
# Larger blocks leave the cores' caches, smaller ones cost more calls than they save.
BLOCK_ENTRIES = 2**18
_OF_ALL = 2**20
# Products end in the same bits wherever rows of so many entries are parted: the processor
# takes what is left of a block another way.
_VECTOR = 64
_MOST_WORKERS = 8  # they share the memory's bandwidth


class Room(NamedTuple):
    """Where rows of one tensor are read to.

    Attributes:
        values: Flat, in the dtype in which they are stored.
        content: The same bytes, for files.
    """

    values: Tensor
    content: memoryview

    @classmethod
    def of(cls, values: Tensor) -> Room:
        """A room that ends in a contiguous tensor."""
        return cls(values, values.view(torch.uint8).numpy().data)


# Fills a room with a tensor, or with rows of its first dimension.
Reader = Callable[[Room, "slice | None"], None]


@dataclass(frozen=True)
class Block:
    """Some rows of one tensor, for the base and every task.

    Attributes:
        key: Tensor name.
        rows: Which rows of its first dimension; the whole tensor if it has none.
        base: Shape (rows, row size); the pretrained values in the compute dtype.
        task_vectors: Shape (tasks, rows, row size); expert minus base. Both are in a
            buffer that is used again: copy what must outlive the next block.
        nbytes: What was read for it from all checkpoints.
    """

    key: str
    rows: slice
    base: Tensor
    task_vectors: Tensor
    nbytes: int


def block_shape(shape: tuple[int, ...], rows: slice | None) -> tuple[int, int]:
    """Rows and row size of some rows; None for the whole of a vector or scalar."""
    if rows is None:
        return 1, torch.Size(shape).numel()
    count = len(range(*rows.indices(shape[0])))
    return count, torch.Size(shape[1:]).numel()


def row_slices(
    shape: tuple[int, ...], entries: int | None = None, start: int = 0, every: int = 1
) -> Iterator[slice]:
    """Slices over the first dimension; vectors and scalars are one row.

    Args:
        shape: Of the tensor.
        entries: Of one slice, where a row has fewer; BLOCK_ENTRIES by default.
        start: Number of the first slice to yield.
        every: Yield one of so many.
    """
    starts = _starts(shape, entries)
    rows = shape[0] if len(shape) > 1 else 1
    for first in starts[start::every]:
        yield slice(first, min(first + starts.step, rows))


def _starts(shape: tuple[int, ...], entries: int | None) -> range:
    """The first row of each slice."""
    if len(shape) < 2:
        return range(1)
    row_size = max(torch.Size(shape[1:]).numel(), 1)
    # An empty tensor is walked too, so that every key yields a block.
    return range(0, max(shape[0], 1), max((entries or BLOCK_ENTRIES) // row_size, 1))


def read_blocks(
    shape: tuple[int, ...],
    rows: Iterable[slice],
    readers: Sequence[tuple[Reader, torch.dtype]],
    dtype: torch.dtype,
    buffers: dict[torch.dtype, Tensor],
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows of one tensor, what the base has in them, and the task vectors.

    Args:
        shape: Of the tensor.
        rows: Those of each block.
        readers: Of the base and the experts, and the dtype that each has.
        dtype: Of what is yielded.
        buffers: What it stands in; grows, and serves the next tensor as well.
    """
    stored = dict.fromkeys(found for _, found in readers)
    held = None
    for some in rows:
        view = None if len(shape) < 2 else some
        size = block_shape(shape, view)
        if size != held:
            held, matrix = size, (len(readers), size[0] * size[1])
            values = _room_for(matrix, dtype, buffers)
            as_stored = {d: _room_for(matrix, d, buffers) for d in stored}
            rooms = [Room.of(as_stored[d][i]) for i, (_, d) in enumerate(readers)]
            converted = [(values, as_stored[d]) for d in stored]
            if len(stored) > 1:
                converted = [(values[i], r.values) for i, r in enumerate(rooms)]
            converted = [(out, into) for out, into in converted if into.dtype != dtype]
            base, *_ = whole = values.view(len(readers), *size)
            task_vectors = whole[1:]
        for (read, _), room in zip(readers, rooms, strict=True):
            read(room, view)
        for out, into in converted:
            out.copy_(into)
        task_vectors.sub_(base)
        yield some, base, task_vectors


def _room_for(
    shape: tuple[int, int], dtype: torch.dtype, buffers: dict[torch.dtype, Tensor]
) -> Tensor:
    size = shape[0] * shape[1]
    if dtype not in buffers or buffers[dtype].numel() < size:
        # Files are read into it, whatever torch's default device is.
        buffers[dtype] = torch.empty(size, dtype=dtype, device="cpu")
    return buffers[dtype][:size].view(shape)


def block_entries(shape: tuple[int, ...], models: int) -> int:
    """Entries of a tensor's blocks: fewer of many models, if that changes no bit."""
    apart = torch.Size(shape[1:]).numel() % _VECTOR == 0
    return min(_OF_ALL // models, BLOCK_ENTRIES) if apart else BLOCK_ENTRIES


def spread_slices(
    shapes: Mapping[str, tuple[int, ...]], entries: int, every: int
) -> dict[str, list[slice]]:
    """One of so many slices of all tensors together, at equal distances.

    Args:
        shapes: Of the tensors, by name.
        entries: As for :func:`row_slices`.
        every: Likewise.
    """
    chosen, start = {}, 0
    for key, shape in shapes.items():
        chosen[key] = list(row_slices(shape, entries, start, every))
        start += len(chosen[key]) * every - len(_starts(shape, entries))
    return chosen


def merge_block(block: Block, coefficients: Tensor) -> Tensor:
    """Merged rows, shape (rows, row size), in the block's compute dtype.

    Args:
        block: Base and task vectors of some rows.
        coefficients: (tasks,) or (tasks, all rows of the tensor).
    """
    weights = coefficients.to(block.base)
    if weights.dim() == 2:
        weights = weights[:, block.rows]
        return block.base + torch.einsum("tr,trc->rc", weights, block.task_vectors)
    stack = block.task_vectors.flatten(1).t()
    return torch.addmv(block.base.flatten(), stack, weights).view(block.base.shape)


class Workers:
    """Threads that work on several tensors at once, one core each.

    A product of a few rows with a vector runs on one core whatever torch's threads are,
    and one core does not use the memory's whole bandwidth. What each product gives does
    not depend on how many run at once. With one thread (`torch.set_num_threads`) all is
    done by the caller.
    """

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(
            _MOST_WORKERS, "merge", initializer=torch.set_num_threads, initargs=(1,)
        )

    def each(
        self,
        work: Callable[[Item], None],
        items: Sequence[Item],
        both_ends: bool = False,
    ) -> None:
        """Call `work` with every item, in any order, without gradients.

        With `both_ends` half of the threads begin at the other end: with the largest first,
        two of the largest would push each other out of the cache.
        """
        left = deque(items)
        threads = torch.get_num_threads()
        if threads == 1 or not left:
            _work_on(work, left.popleft)
            return
        numbers = range(min(threads, _MOST_WORKERS, len(left)))
        ends = [left.pop if both_ends and n % 2 else left.popleft for n in numbers]
        results = [self._pool.submit(_work_on, work, end) for end in ends]
        try:
            wait(results, return_when=FIRST_EXCEPTION)
        finally:
            left.clear()  # after an error nothing goes on behind the caller's back
            wait(results)
            # A thread that starts sets what all later threads would take over.
            torch.set_num_threads(threads)
        for result in results:
            result.result()


@torch.no_grad()  # holds for one thread
def _work_on(work: Callable[[Item], None], end: Callable[[], Item]) -> None:
    while True:
        try:
            item = end()
        except IndexError:
            return
        work(item)
