"""Scores, when a candidate is dropped, and how a scaling is found, against plain numbers."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fusion_plugins.selection.scoring import (
    Scorer,
    Scores,
    agreement,
    negative_entropy,
)
from fusion_plugins.selection.search import COARSE, Search, scan


def values(*rows: list[float]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(row, dtype=torch.float32) for row in rows)


def test_mean_worst_and_standard_error_by_hand():
    scores = Scores(values([1, 1, 0, 0], [1, 1, 1, 0, 1]))
    assert scores.tasks == pytest.approx([0.5, 0.8])
    assert scores.rank == pytest.approx((0.65, 0.5))
    # Binomial variances p (1 - p) / n, of two tasks that weigh a half each.
    want = np.sqrt(0.5 * 0.5 / 4 + 0.8 * 0.2 / 5) / 2
    assert scores.standard_error == pytest.approx(want)


@pytest.mark.parametrize(
    ("worse", "dropped"),
    [(0, False), (3, False), (12, True)],  # of 25: 12 % is 1.8 standard errors behind
)
def test_a_candidate_is_behind_by_three_errors_of_the_paired_difference(worse, dropped):
    best = Scores(values([1] * 100))
    own = Scores(values([0] * worse + [1] * (25 - worse)))
    assert own.is_behind(best) is dropped
    # The difference counts, not the level: equal misses say nothing.
    missed = Scores(values([0] * worse + [1] * (100 - worse)))
    assert not own.is_behind(missed)


def test_a_few_samples_drop_no_candidate():
    """Of one sample a task the error is zero, and any miss would be far behind."""
    for count in (1, 2):
        best = Scores(values(*[[1] * 8] * 3))
        own = Scores(values([0] * count, [1] * count, [1] * count))
        assert not own.is_behind(best)


def test_measures_by_hand():
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 0.0]])
    odd = torch.tensor([[np.nan, 0.0], [np.inf, 0.0], [300.0, 0.0]])
    got = negative_entropy(odd, torch.zeros(3)).tolist()
    assert got == pytest.approx([-np.log(2), -np.log(2), 0])
    assert agreement(logits, torch.tensor([1, 1, 0])).tolist() == [1, 0, 1]
    assert agreement(odd, torch.zeros(3)).tolist() == [0, 1, 1]  # NaN is no class
    p = 1 / (1 + np.exp(-1))
    want = p * np.log(p) + (1 - p) * np.log(1 - p)
    got = negative_entropy(logits, torch.zeros(3))
    assert got[0].item() == pytest.approx(want, abs=1e-6)
    assert got[2].item() == pytest.approx(-np.log(2), abs=1e-6)


@dataclass
class Source:
    """Samples whose inputs are their own numbers."""

    count: int

    def inputs(self, samples: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(samples)


@pytest.fixture
def scorer() -> Scorer:
    """Two tasks of 40 and 1 samples; the class of sample n is n % 2."""
    counts = (40, 1)
    tasks = [SimpleNamespace(name=f"t{n}", source=Source(n)) for n in counts]
    samples = [np.random.default_rng(0).permutation(n) for n in counts]
    classes = [torch.from_numpy(s % 2) for s in samples]
    return Scorer(tasks, samples, classes, agreement)


def answering(right: int):
    """Logits that are right for sample numbers below `right`."""
    seen = []

    def logits(task: int, inputs: torch.Tensor) -> torch.Tensor:
        seen.extend(inputs.tolist() if task == 0 else [])
        classes = torch.where(inputs < right, inputs % 2, 1 - inputs % 2)
        return torch.nn.functional.one_hot(classes, 2).float()

    return logits, seen


def test_the_best_of_all_is_found_and_the_hopeless_see_a_quarter(scorer):
    search = Search(scorer)
    looks = {right: answering(right) for right in (30, 40, 5, 40)}
    better = [
        search.consider({"right": right}, lambda right=right: looks[right][0])
        for right in (30, 40, 5)
    ]
    assert better == [True, True, False]
    assert [c.dropped for c in search.candidates] == [False, False, True]
    assert search.best.settings == {"right": 40}
    assert search.best.scores.mean == 1
    assert search.candidates[0].scores.tasks == [0.75, 1]
    assert len(looks[40][1]) == 40 and set(looks[40][1]) == set(range(40))
    assert looks[5][1] == scorer.samples[0][:10].tolist()
    without = Search(scorer, drop=False)
    without.consider({}, lambda: looks[40][0])
    without.consider({}, lambda: looks[5][0])
    assert [len(c.scores.values[0]) for c in without.candidates] == [40, 40]


def test_of_equal_means_the_better_worst_task_wins_and_then_the_first(scorer):
    search = Search(scorer, drop=False)
    means = {"a": ([1, 0], [1, 1]), "b": ([1, 1, 1, 0], [1, 1, 0, 1]), "c": None}
    means["c"] = means["b"]
    for name, rows in means.items():
        search.scorer = SimpleNamespace(
            score=lambda logits, best, rows=rows: (Scores(values(*rows)), False)
        )
        search.consider({"name": name}, lambda: None)
    assert search.best.settings == {"name": "b"}


@pytest.mark.parametrize("peak", [0.03, 0.1, 0.27, 0.4, 0.62, 1.0])
def test_the_scan_comes_near_a_peak(peak):
    seen = {}

    def consider(value: float) -> bool:
        best = max(seen.values(), default=-np.inf)
        seen[value] = -abs(value - peak)
        return seen[value] > best

    found = scan(consider)
    assert abs(found - peak) <= 0.025 + 1e-9 and found == max(seen, key=seen.get)
    assert list(seen)[:10] == list(COARSE) and len(seen) == 14
