"""Runs killed at random moments, also while saving, end as if nothing had happened."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_tinting.py")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, str(SCRIPT), str(folder)]
    subprocess.run(command, check=True, timeout=180)
    return json.loads((folder / "report.json").read_text())


@pytest.mark.slow
def test_every_signal_was_sent_ten_times_and_mostly_in_time(report):
    signals = [entry["signal"] for entry in report]
    assert {s: signals.count(s) for s in signals} == dict.fromkeys(
        ("SIGKILL", "SIGTERM", "SIGINT"), 10
    )
    assert sum(entry["hit"] for entry in report) >= 15


@pytest.mark.slow
def test_the_next_run_ends_with_the_unbroken_runs_bits(report):
    assert [e for e in report if e["differs"] or e["status"]] == []
