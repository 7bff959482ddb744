"""Merges that die at random moments, by every signal; two at once."""

from pathlib import Path

import killed_streams
import pytest
from forked import call

pytestmark = pytest.mark.slow


def test_killed_merges_lose_nothing_and_two_never_share_a_folder(llamas, tmp_path):
    pool = Path(llamas["_pretrained_"]).parent
    found = call(killed_streams.kill, pool, tmp_path)
    message = f"Another run writes to {tmp_path / 'locked'} now. Wait for it, or"
    assert found.pop("lock").startswith(message)
    assert set(found) == {"SIGKILL", "SIGTERM", "SIGINT"}
    for kills, runs, indices in found.values():
        assert kills == 10 <= runs
        assert indices < 10, "every kill came after the merge"
