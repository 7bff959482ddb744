"""Batches of a task, preprocessed once and kept, or streamed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from ..common.identity import data_fingerprint, fingerprint
from .data import Batch, TaskSamples


class StreamedSamples:
    """A batch source that encodes samples anew each time.

    Args:
        data: The samples.
        visited: Those that the run will see.
        workers: Processes that encode samples ahead of the draws.
    """

    def __init__(self, data: TaskSamples, visited: np.ndarray, workers: int = 0):
        self.data, self.visited, self.count = data, visited, len(data)
        self._workers = workers
        self._stream: Iterator[Tensor] | None = None
        self._next_draw = 0

    def batch(self, draws: Iterable[int]) -> Batch:
        draws = list(draws)
        stored = torch.cat([self._encoded(draw) for draw in draws])
        own = [self.data.indices(draw) for draw in draws]
        return self.data.labelled(own, self.data.decoded(stored))

    def _encoded(self, draw: int) -> Tensor:
        """Encoded samples of a draw; consecutive draws are prefetched by workers."""
        if self._stream is None or self._next_draw != draw:
            batches = _Draws(self.data, draw)
            self._stream = iter(
                DataLoader(
                    self.data.dataset,
                    batch_sampler=batches,
                    num_workers=self._workers,
                )
            )
        self._next_draw = draw + 1
        return next(self._stream)

    def inputs(self, samples: np.ndarray) -> Tensor:
        return self.data.decoded(self.data.encoded(samples))

    def monitored(self, count: int) -> Tensor:
        return self.inputs(self.data.monitored(count))

    def fingerprint(self) -> str:
        return data_fingerprint(self.data.dataset, _handful(self.visited).tolist())

    def contents(self) -> dict[str, str]:
        stored = getattr(self.data.dataset, "contents", lambda: None)()
        return {} if stored is None else {"stored_samples": stored}


class KeptSamples:
    """A batch source whose samples are encoded once, here, and kept.

    Args:
        data: The samples.
        visited: Those that the run will see; any other is encoded when asked for.
        device: Where they are kept.
        workers: Processes that encode them.
        progress: Show a progress bar.
    """

    def __init__(
        self,
        data: TaskSamples,
        visited: np.ndarray,
        device: torch.device | str = "cpu",
        workers: int = 0,
        progress: bool = False,
    ):
        self.data, self.visited, self.count = data, visited, len(data)
        self._place = np.full(len(data), -1)
        self._place[visited] = np.arange(len(visited))
        # Starting workers costs more than a few hundred samples do.
        loader = DataLoader(
            Subset(data.dataset, visited.tolist()),
            batch_size=64,
            num_workers=workers if len(visited) > 256 else 0,
        )
        self._kept: Tensor | None = None
        done = 0
        with tqdm(
            total=len(visited), desc=f"Cache {data.task}", disable=not progress
        ) as bar:
            for part in loader:
                if self._kept is None:
                    shape = (len(visited), *part.shape[1:])
                    self._kept = torch.empty(shape, dtype=part.dtype, device=device)
                self._kept[done : done + len(part)] = part
                done += len(part)
                bar.update(len(part))

    def batch(self, draws: Iterable[int]) -> Batch:
        own = [self.data.indices(draw) for draw in draws]
        return self.data.labelled(own, self.inputs(np.concatenate(own)))

    def inputs(self, samples: np.ndarray) -> Tensor:
        places = self._place[samples]
        if self._kept is not None and (places >= 0).all():
            chosen = torch.from_numpy(places).to(self._kept.device)
            return self.data.decoded(self._kept[chosen])
        return self.data.decoded(self.data.encoded(samples))

    def monitored(self, count: int) -> Tensor:
        return self.inputs(self.data.monitored(count))

    def fingerprint(self) -> str:
        places = self._place[_handful(self.visited)].tolist()
        return data_fingerprint([] if self._kept is None else self._kept, places)

    def contents(self) -> dict[str, str]:
        return {"all_samples": fingerprint(self.visited, self._kept)}


def _handful(visited: np.ndarray) -> np.ndarray:
    return visited[:: max(len(visited) // 32, 1)][:32]


class _Draws:
    """The endless sequence of a task's batches from one draw on, for a DataLoader."""

    def __init__(self, data: TaskSamples, start: int):
        self._data, self._start = data, start

    def __iter__(self) -> Iterator[list[int]]:
        for draw in itertools.count(self._start):
            yield self._data.indices(draw).tolist()
