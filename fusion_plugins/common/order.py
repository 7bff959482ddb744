"""Which samples a step sees: a function of seed, task and step number alone."""

from __future__ import annotations

import zlib
from functools import lru_cache

import numpy as np


class SampleOrder:
    """An endless stream of shuffled epochs per task, addressable at any point.

    Stateless, so a resumed run sees exactly what an unbroken one would have, and a task
    keeps its order when others join or leave.

    Args:
        seed: Seed of the run.
        batch_size: Samples per batch, over all processes.
    """

    def __init__(self, seed: int, batch_size: int):
        self.seed, self.batch_size = seed, batch_size

    def batch(self, task: str, samples: int, draw: int) -> np.ndarray:
        """Sample indices of a task's batch number `draw`, shape (batch_size,)."""
        positions = np.arange(self.batch_size) + draw * self.batch_size
        epochs, places = np.divmod(positions, samples)
        parts = [
            _permutation(self.seed, task, samples, int(epoch))[places[epochs == epoch]]
            for epoch in np.unique(epochs)
        ]
        return np.concatenate(parts)

    def subset(self, task: str, samples: int, count: int) -> np.ndarray:
        """A fixed random choice of `count` sample indices, for subsets and monitoring."""
        chosen = _permutation(self.seed, f"subset of {task}", samples, 0)
        return chosen[: min(count, samples)]

    def rounds(self, tasks: int, round_index: int) -> np.ndarray:
        """A fresh random order of the tasks for one round, shape (tasks,)."""
        return _permutation(self.seed, "rounds", tasks, round_index)


@lru_cache(maxsize=64)
def _permutation(seed: int, name: str, size: int, epoch: int) -> np.ndarray:
    key = [seed, zlib.crc32(name.encode()), epoch]
    return np.random.default_rng(key).permutation(size)
