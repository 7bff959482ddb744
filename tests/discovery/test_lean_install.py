"""The core does without every optional package, and says which extra brings one."""

import json
import sys
from pathlib import Path

import pytest
from start_program import REPOSITORY, start

import fusion_plugins

pytestmark = pytest.mark.slow

# What is asked for -> the message.
MISSING = {
    "OpenCLIPModelPool": ("OpenCLIP", "open_clip", "openclip"),
    "OpenCLIPTaskPool": ("OpenCLIP", "open_clip", "openclip"),
    "compare": ("The report of a comparison", "matplotlib", "report"),
    "gather": ("The report of a comparison", "matplotlib", "report"),
    "sweep": ("The plot of a sweep", "matplotlib", "report"),
    "digits": ("The task digits", "sklearn", "demo"),
    "resnet": ("A ResNet pool of type torchvision", "torchvision", "torchvision"),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("lean")
    program = Path(__file__).with_name("without_extras.py")
    run = start([sys.executable, program, folder], folder, PYTHONPATH=str(REPOSITORY))
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_awd_merges_clip_folders(said: dict) -> None:
    assert said["files"] == ["awd.json"]
    command = "pip install 'fusion-plugins[report]'"
    assert said["warnings"] == [f"There is no picture of the cosines: {command}"]


@pytest.mark.parametrize("name", [*MISSING, *fusion_plugins.__all__])
def test_what_is_missing_is_one_line_with_its_extra(said: dict, name: str) -> None:
    expected = "no error"
    if name in MISSING:
        purpose, module, extra = MISSING[name]
        expected = f"ModuleNotFoundError: {purpose} needs {module}: pip install"
        expected += f" 'fusion-plugins[{extra}]'."
    assert said["errors"][name] == expected
