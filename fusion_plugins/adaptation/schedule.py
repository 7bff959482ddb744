"""Which tasks a step trains on, and with which of their batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..common.order import SampleOrder

# One step: (task index, draws of that task), in the order they are run.
Draws = list[tuple[int, list[int]]]


class Schedule(Protocol):
    """A number of steps, and what each of them sees."""

    steps: int

    def draws(self, step: int) -> Draws: ...


class JointSchedule:
    """Every step sees all tasks, a few batches of each (AdaMerging).

    Args:
        tasks, steps: How many.
        batches_per_task: Batches of each task per step; each batch's mean is added.
    """

    def __init__(self, tasks: int, steps: int, batches_per_task: int = 1):
        self.tasks, self.steps, self._per_task = tasks, steps, batches_per_task

    def draws(self, step: int) -> Draws:
        first = step * self._per_task
        draws = list(range(first, first + self._per_task))
        return [(task, draws) for task in range(self.tasks)]


class SequentialSchedule:
    """Rounds of one batch and one step per task, tasks in a fresh order (Tinting).

    Args:
        tasks, rounds: How many; tasks * rounds steps in all.
        order: Gives each round's order of tasks.
    """

    def __init__(self, tasks: int, rounds: int, order: SampleOrder):
        self.tasks, self.steps, self._order = tasks, tasks * rounds, order

    def draws(self, step: int) -> Draws:
        round_index, place = divmod(step, self.tasks)
        task = int(self._order.rounds(self.tasks, round_index)[place])
        return [(task, [round_index])]


def visited_draws(
    schedule: Schedule, tasks: Sequence[str], steps: int
) -> dict[str, list[int]]:
    """Every task's draws over the first steps.

    Args:
        schedule: Which task draws when.
        tasks: Their names.
        steps: How many.
    """
    visited: dict[str, list[int]] = {name: [] for name in tasks}
    for step in range(steps):
        for task, draws in schedule.draws(step):
            visited[tasks[task]].extend(draws)
    return visited
