"""Merges that die at random moments, by every signal; two at once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("killed_streams.py")


def test_killed_merges_lose_nothing_and_two_never_share_a_folder(llamas, tmp_path):
    pool = Path(llamas["_pretrained_"]).parent
    command = [sys.executable, str(SCRIPT), str(pool), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    message = f"Another run writes to {tmp_path / 'locked'} now. Wait for it, or"
    assert found.pop("lock").startswith(message)
    assert set(found) == {"SIGKILL", "SIGTERM", "SIGINT"}
    for kills, runs, indices in found.values():
        assert kills == 10 <= runs
        assert indices < 10, "every kill came after the merge"
