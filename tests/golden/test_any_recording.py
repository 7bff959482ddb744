"""The tests of this folder hold for recordings of any shape, not for one of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from recordings import FOLDER

HERE = Path(__file__).parent


@pytest.mark.slow
def test_recordings_of_another_shape_are_replayed_too(tmp_path):
    if FOLDER != HERE / "data":
        pytest.skip("other recordings are under test already")
    subprocess.run([sys.executable, str(HERE / "record.py"), str(tmp_path)], check=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE]
    run = subprocess.run(
        [*command, "-rs", "-k", "not another_shape"],
        env=os.environ | {"FUSION_PLUGINS_GOLDEN": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert "no recording" not in run.stdout and "skipped" not in run.stdout
