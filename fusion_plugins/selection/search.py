"""The search: candidates one after the other, the best one, and what was seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..common import get_logger
from .scoring import Logits, Scorer, Scores

log = get_logger(__name__)

#: Scalings that are tried where none are given, and steps to both sides of the best.
COARSE = tuple(round(0.1 * step, 1) for step in range(1, 11))
_FINER = (0.05, 0.025)
SCANNED = len(COARSE) + 2 * len(_FINER)


@dataclass(frozen=True)
class Candidate:
    """One candidate and how it did.

    Attributes:
        settings: Option -> value.
        scores: On the samples it was looked at with.
        dropped: Whether that was the first quarter only.
        merge_seconds, score_seconds: What it cost.
    """

    settings: Mapping[str, Any]
    scores: Scores
    dropped: bool
    merge_seconds: float
    score_seconds: float


@dataclass
class Search:
    """Scores candidates and knows the best.

    Attributes:
        scorer: Of all candidates.
        drop: Whether a candidate that is clearly behind is dropped early.
        candidates: Those seen so far.
        best: The best of them, by the mean over tasks, then by the worst task.
    """

    scorer: Scorer
    drop: bool = True
    candidates: list[Candidate] = field(default_factory=list)
    best: Candidate | None = None

    def consider(
        self, settings: Mapping[str, Any], merge: Callable[[], Logits]
    ) -> bool:
        """Look at a candidate.

        Args:
            settings: Its options.
            merge: Makes it; gives its logits.

        Returns:
            Whether it is the best so far; the first of equals stays the best.
        """
        start = time.perf_counter()
        logits = merge()
        merged = time.perf_counter()
        best = self.best.scores if self.best and self.drop else None
        scores, dropped = self.scorer.score(logits, best)
        seconds = merged - start, time.perf_counter() - merged
        candidate = Candidate(settings, scores, dropped, *seconds)
        self.candidates.append(candidate)
        if dropped or self.best and scores.rank <= self.best.scores.rank:
            return False
        self.best = candidate
        return True


def scan(consider: Callable[[float], bool]) -> float:
    """The best scaling: 0.1 to 1.0, then twice a finer look around the best.

    Args:
        consider: Looks at a scaling; says whether it is the best so far.
    """
    best = 0.0
    for value in COARSE:
        best = value if consider(value) else best
    for step in _FINER:
        for value in (round(best - step, 3), round(best + step, 3)):
            best = value if consider(value) else best
    return best
