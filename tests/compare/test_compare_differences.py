"""Paired differences: what scipy finds, and what tables and sentences say of them."""

import csv
import io
import math

import numpy as np
import pytest
from scipy.stats import bootstrap
from test_compare_tables import record, summary, text_of

from fusion_plugins.compare.columns import frame_csv, rows_frame
from fusion_plugins.compare.differences import compare, mcnemar
from fusion_plugins.compare.files import Answers, checked_record
from fusion_plugins.compare.latex import latex_table
from fusion_plugins.compare.loading import frame_of
from fusion_plugins.compare.tables import markdown_table
from fusion_plugins.compare.terminal import terminal_tables


def answers(samples: int, ours: int, theirs: int, both: int = 0):
    """Two methods: so many samples that only one is right on, and that both are."""
    right = np.zeros((2, samples), dtype=bool)
    right[0, :ours] = right[1, ours : ours + theirs] = True
    right[:, ours + theirs : ours + theirs + both] = True
    return right[:1], right[1:]


@pytest.mark.parametrize(("ours", "theirs"), [(0, 0), (1, 0), (10, 2), (25, 10)])
def test_mcnemar_is_the_exact_binomial_test(ours, theirs):
    (mine,), (base,) = answers(60, ours, theirs)
    apart, few = ours + theirs, min(ours, theirs)
    tail = sum(math.comb(apart, k) for k in range(few + 1)) / 2**apart
    assert mcnemar(mine, base) == pytest.approx(min(1.0, 2 * tail))


def test_the_interval_is_that_of_scipys_bootstrap():
    pairs = [answers(400, 40, 20, 300), answers(150, 9, 12, 60)]
    _, mean = compare(*zip(*pairs, strict=True), same_seeds=True)
    apart = [ours[0].astype(float) - theirs[0] for ours, theirs in pairs]
    found = bootstrap(
        apart,
        lambda a, b, axis: (a.mean(axis) + b.mean(axis)) / 2,
        vectorized=True,
        method="percentile",
        n_resamples=5000,
        batch=500,
        random_state=0,
    )
    near = 0.2 * found.standard_error  # both draw at random
    assert mean.value == pytest.approx((0.05 - 0.02) / 2)
    assert mean.low == pytest.approx(found.confidence_interval.low, abs=near)
    assert mean.high == pytest.approx(found.confidence_interval.high, abs=near)


def test_seeds_widen_the_interval_by_the_error_of_their_mean():
    shares = np.linspace(0.4, 0.6, 8)  # sample standard deviation 0.07
    ours = np.arange(20_000) % 1000 < 1000 * shares[:, None]
    theirs = np.arange(20_000)[None] % 2 == 0
    _, mean = compare([ours], [theirs], same_seeds=False)
    error = shares.std(ddof=1) / 8**0.5
    assert (mean.high - mean.low) / 2 == pytest.approx(1.96 * error, rel=0.1)


def test_seeds_that_both_have_are_drawn_in_pairs():
    shares = np.linspace(0.4, 0.6, 8)
    ours = np.arange(2000) % 1000 < 1000 * shares[:, None]
    theirs = np.arange(2000) % 1000 < 1000 * (shares[:, None] - 0.1)
    (paired,), _ = compare([ours], [theirs], same_seeds=True)
    (apart,), _ = compare([ours], [theirs], same_seeds=False)
    assert paired.high - paired.low < (apart.high - apart.low) / 2


def rows(*methods, seeds=(0,), **changes) -> list[dict]:
    """A record for each (name, right answers of tasks x_1 and y), with every seed."""
    found = []
    for order, (name, (first, second)) in enumerate(methods):
        for seed in seeds:
            values = first.mean(), second.mean()
            kept = {
                task: Answers(right[0], "order").stored()
                for task, right in (("x_1", first), ("y", second))
            }
            options = {"answers": kept, "order": order} | changes
            found.append(record(name, seed, values, **options))
    return found


EQUAL = answers(500, 20, 22, 300)
APART = answers(500, 25, 10, 300)  # by three points
NAMES = "simple_average", "awd"


def both(pair) -> list[dict]:
    ours, theirs = pair
    return rows(("simple_average", (theirs, theirs)), ("awd", (ours, ours)))


@pytest.mark.parametrize(("pair", "same"), [(EQUAL, True), (APART, False)])
def test_equal_methods_are_called_equal_and_three_points_are_seen(pair, same):
    cells = frame_of(both(pair)).set_index("label")
    assert cells.loc["awd", "baseline"] == "simple_average"
    for task in ("x_1", "y", "average"):
        assert cells.loc["awd", f"same/{task}"] is same
    assert (cells.loc["awd", "p/y"] < 0.05) is not same
    assert cells.loc["simple_average", "same/y"] is None
    assert cells.loc["awd", "difference/y"] == pytest.approx(-0.004 if same else 0.03)


def test_words_and_marks():
    shown = summary(
        both(EQUAL) + rows(("best", (np.ones((1, 500), bool),) * 2), order=2)
    )
    text = " ".join(text_of(terminal_tables(shown, 200)).split())
    assert "Better than simple_average: best +35.6 (" in text
    assert "Not distinguishable from simple_average: awd -0.4 (" in text
    assert "64.0≈" in text and "100.0≈" not in text
    assert "64.0≈" in markdown_table(shown)
    assert r"64.0$\approx$" in latex_table(shown)
    lines = {
        r["label"]: r for r in csv.DictReader(io.StringIO(frame_csv(rows_frame(shown))))
    }
    assert lines["awd"]["average_same"] == "True"
    assert float(lines["best"]["average_low"]) > 0.3
    assert lines["simple_average"]["average_same"] == ""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"answers": None}, "no results per sample in its cells or the baseline's"),
        ({"identity": {"pools": "q"}}, "measured on other models or data than"),
        (
            {"answers": {t: Answers(EQUAL[0][0], "z").stored() for t in ("x_1", "y")}},
            "other samples of x_1 than the baseline's",
        ),
    ],
)
def test_only_the_same_samples_are_compared(changes, reason):
    records = [r | (changes if r["method"] == "awd" else {}) for r in both(EQUAL)]
    text = " ".join(text_of(terminal_tables(summary(records), 200)).split())
    assert f"No intervals for awd: {reason}" in text and "≈" not in text


def test_other_metrics_have_no_intervals():
    records = [record(n, values=(0.5, 0.6), metric="f1") for n in NAMES]
    assert "only accuracy is a mean over samples" in markdown_table(summary(records))


@pytest.mark.parametrize(
    ("baseline", "chosen"),
    [(None, "simple_average"), ("awd", "awd"), ("none", None), ("wudi/wudi", None)],
)
def test_the_baseline_is_chosen(baseline, chosen):
    cells = frame_of(both(APART), baseline)
    assert set(cells["baseline"]) == {chosen}
    missing = "the baseline wudi/wudi has no finished cell"
    assert set(cells["no_interval"]) == {missing if baseline == "wudi/wudi" else None}


def test_answers_are_kept_to_the_bit():
    right = np.random.default_rng(0).random(1001) < 0.6
    again = Answers.read(Answers(right, "o").stored())
    assert np.array_equal(again.right, right) and again.order == "o"


def test_damaged_answers_are_named(tmp_path):
    (cell,) = rows(("awd", EQUAL))
    cell |= {"cell": "awd-seed0", "parts": [None], "overrides": {}, "config": {}}
    cell["answers"]["y"]["samples"] += 24
    with pytest.raises(ValueError, match="the answers of y are"):
        checked_record(tmp_path / "awd-seed0.json", cell)
