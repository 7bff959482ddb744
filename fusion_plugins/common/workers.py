"""Threads that work on several tensors at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import cached_property
from typing import TypeVar

import torch

Item = TypeVar("Item")

_MOST_WORKERS = 8  # they share the memory's bandwidth


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
