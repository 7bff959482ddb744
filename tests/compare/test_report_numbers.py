"""Means, spreads, scales, axes and label places of the report."""

import math

import pandas as pd
import pytest

from fusion_plugins.common.charts import coefficient_range
from fusion_plugins.compare.figures import running_mean
from fusion_plugins.compare.numbers import (
    Scale,
    Spread,
    date_text,
    duration_text,
    seconds_text,
)


def test_spread_is_the_sample_standard_deviation():
    spread = Spread.of([0.80, 0.84])
    assert spread.mean == pytest.approx(0.82)
    assert spread.deviation == pytest.approx(math.sqrt((0.02**2 + 0.02**2) / 1))


def test_one_seed_has_no_deviation_and_none_gives_none():
    assert Spread.of([0.5]) == Spread(0.5, None)
    assert Spread.of([]) is None


def test_a_seed_without_the_figure_leaves_no_mean():
    assert Spread.of([0.8, None]) is None


def test_a_seed_that_is_not_finite_is_shown_not_dropped():
    spread = Spread.of([0.5, math.nan])
    assert not spread.finite
    assert Scale(percent=True).spread(spread) == "NaN"


def test_numbers_as_text():
    assert Scale(percent=True).spread(Spread.of([0.80, 0.84])) == "82.0 ± 2.8"
    assert Scale(percent=False).spread(Spread.of([1.23456])) == "1.235"
    assert Scale(percent=True).spread(None) == "–"
    assert [seconds_text(s) for s in (0.2149, 3.44, 133.4, 4000)] == [
        "0.21",
        "3.4",
        "133",
        "4,000",
    ]
    assert duration_text(726) == "12 min 6 s"
    assert duration_text(12000) == "3 h 20 min"
    assert date_text("2026-11-22T12:00:00+00:00") == "2026-11-22 12:00 UTC"


def test_running_mean_of_a_turn_hides_which_task_a_step_saw():
    points = pd.Series([10.0 * (step % 3) + 3 for step in range(30)])
    means = running_mean(points, 3)
    assert means.tolist() == pytest.approx([13.0] * 28)
    assert means.index.tolist() == list(range(1, 29))
    assert running_mean(points, 1).equals(points)
    assert running_mean(points[:2], 3).equals(points[:2])


def test_colours_start_at_zero_unless_all_values_would_look_alike():
    assert coefficient_range([[0.1, 0.6]])[:2] == (0.0, 0.6)
    assert coefficient_range([[0.4, 0.6]])[:2] == (0.4, 0.6)
    assert coefficient_range([[0.3, 0.3]])[:2] == (0.0, 0.3)
    assert coefficient_range([[-0.2, 0.6]])[:2] == (-0.6, 0.6)
