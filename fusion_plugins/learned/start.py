"""What coefficients start from where the samples are to say it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tqdm.auto import tqdm

from ..adaptation import Coefficients, Predictor, SampleOrder
from ..merged.statistics import RunningStatistics
from ..selection.pool import SAMPLES
from ..selection.response import chosen, described
from ..selection.scoring import Logits, Scorer, agreement, taught
from ..selection.search import SCANNED, Search, scan


def start_chooser(
    predictor: Predictor, order: SampleOrder
) -> Callable[[Coefficients, RunningStatistics], Search]:
    """What gives coefficients the one value whose merge agrees best with the experts.

    Args:
        predictor: Its weights still hold the untouched task vectors; when the result is
            called, they hold what is merged.
        order: Of the samples.
    """

    def expert(index: int) -> Logits:
        predictor.weights.materialise_expert(index)
        return predictor.logits

    tasks = predictor.tasks
    samples = [order.subset(t.name, t.source.count, SAMPLES) for t in tasks]
    scorer = Scorer(tasks, samples, taught(tasks, samples, expert), agreement)

    def choose(coefficients: Coefficients, statistics: RunningStatistics) -> Search:
        search = Search(scorer)

        @torch.no_grad()
        def at(value: float) -> Logits:
            coefficients.raw.fill_(value)
            merged = predictor.weights.materialise(coefficients.effective())
            statistics.write(merged)
            return predictor.logits

        def consider(value: float) -> bool:
            bar.update()
            return search.consider({"init": value}, lambda: at(value))

        shown = predictor.fabric.is_global_zero
        with tqdm(
            desc="Choose init", total=SCANNED, leave=False, disable=not shown
        ) as bar:
            at(scan(consider))
        return search

    return choose


def start_notes(search: Search | None) -> list[str]:
    """A sentence for the model card, if there was a search."""
    if search is None:
        return []
    best = described(chosen(search).settings)
    return [f"Coefficients started from {best}, which agreed best with the experts."]
