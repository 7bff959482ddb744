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

log = get_logger(__name__)


def run_missing(
    cells: Sequence[Cell], plan: Plan, bench: Bench, retry_failed: bool
) -> None:
    """Run cells beside other processes.

    First those that nobody works on; then wait for the others', and take over where a
    process died.
    """
    start, begun = time.monotonic(), 0

    def ended(cell: Cell, retry_failed: bool, wait: bool) -> bool:
        """Run a cell unless it is done; False if another process is at it."""
        nonlocal begun
        with plan.results.claimed(cell, wait) as mine:
            if mine and not plan.is_finished(cell, retry_failed):
                passed = time.monotonic() - start
                left = passed / begun * (len(cells) - begun) if begun else 0
                rest = f", about {duration_text(left)} left" if left else ""
                begun += 1
                log.info("cell %d of %d: %s%s", begun, len(cells), cell.id, rest)
                _run(cell, plan, bench)
            return mine

    held = [cell for cell in cells if not ended(cell, retry_failed, wait=False)]
    for cell in held:  # what another process just failed at is not tried once more
        ended(cell, retry_failed=False, wait=True)


def _run(cell: Cell, plan: Plan, bench: Bench) -> None:
    shutil.rmtree(plan.work_folder(cell), ignore_errors=True)
    with vanishing():
        found = run_cell(cell, bench)
    plan.results.replace(cell, [record | plan.marks(cell) for record in found])
    plan.results.note_tasks([task for record in found for task in record["tasks"]])
