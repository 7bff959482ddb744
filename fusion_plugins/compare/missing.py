"""The cells that have no result yet, one after the other."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence

from ..common import get_logger
from ..common.running import vanishing
from .cells import Cell
from .execution import Bench, run_cell
from .numbers import duration_text
from .plan import Plan


def run_missing(
    cells: Sequence[Cell], plan: Plan, bench: Bench, retry_failed: bool
) -> None:
    """Run cells beside other processes.

    First those that nobody works on; then wait for the others', and take over where a
    process died.
    """
    clock = Progress(len(cells))
    held = [c for c in cells if not _run(c, plan, bench, clock, retry_failed)]
    for cell in held:  # what another process just failed at is not tried once more
        _run(cell, plan, bench, clock, retry_failed=False, wait=True)


def _run(
    cell: Cell,
    plan: Plan,
    bench: Bench,
    clock: Progress,
    retry_failed: bool,
    wait: bool = False,
) -> bool:
    """Run a cell unless it is done; False if another process is at it."""
    with plan.results.claimed(cell, wait) as mine:
        if not mine:
            return False
        if plan.is_finished(cell, retry_failed):
            return True
        clock.tell(cell)
        shutil.rmtree(plan.work_folder(cell), ignore_errors=True)
        with vanishing():
            found = run_cell(cell, bench)
        records = [record | plan.marks(cell) for record in found]
        plan.results.replace(cell, records)
        plan.results.note_tasks([task for r in records for task in r["tasks"]])
    return True


log = get_logger(__name__)


class Progress:
    """Which cell is run now, and how long the rest will take."""

    def __init__(self, cells: int):
        self._cells, self._begun, self._start = cells, 0, time.monotonic()

    def tell(self, cell: Cell) -> None:
        passed, done = time.monotonic() - self._start, self._begun
        self._begun += 1
        left = passed / done * (self._cells - done) if done else 0
        rest = f", about {duration_text(left)} left" if left else ""
        log.info("cell %d of %d: %s%s", self._begun, self._cells, cell.id, rest)
