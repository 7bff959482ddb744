"""Runs killed at random moments, also while saving, end as if nothing had happened."""

import killed_tinting
import pytest
from forked import assert_nothing_lost, call


@pytest.mark.slow
def test_killed_runs_end_with_the_unbroken_runs_bits(tmp_path):
    assert_nothing_lost(call(killed_tinting.kill, tmp_path))
