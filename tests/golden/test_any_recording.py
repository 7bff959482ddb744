"""The replays hold for other recordings of the same form, given as their folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from made_recordings import write_recordings

pytestmark = pytest.mark.slow

REPLAYS = ("test_adamerging.py", "test_awd.py", "test_tinting.py")


def test_other_tasks_classes_widths_and_schedules_are_replayed(tmp_path):
    write_recordings(tmp_path)
    files = [Path(__file__).with_name(name) for name in REPLAYS]
    command = [sys.executable, "-m", "pytest", "-o", "addopts=-q", *map(str, files)]
    run = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        env={**os.environ, "FUSION_PLUGINS_GOLDEN": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    last = run.stdout.splitlines()[-1]
    assert re.fullmatch(r"\d+ passed(, \d+ warnings?)? in .*", last), run.stdout[-3000:]
