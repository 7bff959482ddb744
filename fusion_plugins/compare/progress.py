"""How far a comparison is."""

from __future__ import annotations

import time

from ..common import get_logger
from .cells import Cell
from .numbers import duration_text

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
