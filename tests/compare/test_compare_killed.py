"""Comparisons killed at random moments go on where they were."""

import killed_comparisons
import pytest
from forked import assert_nothing_lost, call


@pytest.mark.slow
def test_killed_comparisons_go_on_with_the_cells_they_finished(tmp_path):
    assert_nothing_lost(call(killed_comparisons.kill, tmp_path))
