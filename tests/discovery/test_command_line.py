"""The `fusion_bench` command finds our configs from any folder, and fails as upstream.

That it starts at all, `test_quiet_command` shows.
"""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from start_program import FUSION_BENCH, REPOSITORY, start_at_once

pytestmark = pytest.mark.slow

JOB = ["method=awd", "modelpool=clip-vit-b32_TA8", "taskpool=clip-vit-b32_TA8"]


# The command, with the hub's library told to ask nobody, as HF_HUB_OFFLINE=1 does.
OFFLINE = """
import datasets, huggingface_hub.constants
from fusion_bench.scripts.cli import _hydra_main

datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
_hydra_main()
"""


def composed(command: list[str | Path], folder: Path) -> dict:
    """The job that a command composes when it is started in `folder`."""
    run = start_at_once([*command, *JOB, "--cfg", "job"], folder)
    assert run.returncode == 0, run.stderr
    return OmegaConf.to_container(OmegaConf.create(run.stdout))


@pytest.fixture(scope="module")
def from_empty_folder(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return composed([FUSION_BENCH], tmp_path_factory.mktemp("empty"))


def test_composes_in_an_empty_folder(from_empty_folder: dict) -> None:
    job = from_empty_folder
    assert job["method"]["_target_"] == "fusion_plugins.AWDAlgorithm"
    assert job["modelpool"]["test_datasets"]["mnist"]["path"] == "ylecun/mnist"
    assert len(job["taskpool"]["test_datasets"]) == 8


def test_composes_the_same_in_the_checkout(from_empty_folder: dict) -> None:
    assert composed([FUSION_BENCH], REPOSITORY) == from_empty_folder


def test_composes_the_same_beside_an_unrelated_config_folder(
    tmp_path: Path, from_empty_folder: dict
) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "foo.yaml").write_text("foo: 1\n")
    assert composed([FUSION_BENCH], tmp_path) == from_empty_folder


def test_composes_the_same_as_a_module(tmp_path: Path, from_empty_folder: dict) -> None:
    command = ["-m", "fusion_bench.scripts.cli"]
    assert composed(command, tmp_path) == from_empty_folder


def test_without_a_hub_it_stops_with_the_hubs_error(tmp_path: Path) -> None:
    (tmp_path / "offline.py").write_text(OFFLINE)
    run = start_at_once([tmp_path / "offline.py", *JOB], tmp_path)
    assert run.returncode != 0
    # One line names what could not be had: the test sets are looked at first.
    (error,) = re.findall(r"^\w+Error: .*", run.stderr, flags=re.MULTILINE)
    assert error.startswith(
        "ConnectionError: Couldn't reach 'tanganke/sun397' on the Hub"
    )
    assert "Offline" in error and "Traceback" not in run.stderr
