"""The replays hold for other recordings of the same form, given as their folder."""

import os
import re
from pathlib import Path

import pytest
from forked import run_script
from made_recordings import write_recordings

pytestmark = pytest.mark.slow

REPLAYS = ("test_adamerging.py", "test_awd.py", "test_tinting.py")


def test_other_tasks_classes_widths_and_schedules_are_replayed(tmp_path):
    write_recordings(tmp_path)
    files = [Path(__file__).with_name(name) for name in REPLAYS]
    command = ["-m", "pytest", "-o", "addopts=-q", "-p", "no:cacheprovider", *files]
    command += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    environment = {**os.environ, "FUSION_PLUGINS_GOLDEN": str(tmp_path)}
    run = run_script(command, Path(__file__).parent, environment)
    last = run.stdout.splitlines()[-1]
    assert re.fullmatch(r"\d+ passed(, \d+ warnings?)? in .*", last), run.stdout[-3000:]
