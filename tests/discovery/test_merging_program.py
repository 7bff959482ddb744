"""The program behind `fusion_bench`: what one job leaves for the next."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from fusion_bench import BaseAlgorithm, BaseModelPool
from fusion_bench.tasks.clip_classification import CLIPTemplateFactory
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import CompactHydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from fusion_plugins.cli.merging import MergingProgram
from fusion_plugins.common.folders import results_folder
from fusion_plugins.common.running import one_line_errors
from fusion_plugins.pools.clip_tasks import register_clip_task


class Registering(BaseAlgorithm):
    def run(self, modelpool):
        register_clip_task("wombats", ["young", "old"], ["a {} wombat"])
        return modelpool.load_model("_pretrained_")


class Pool(BaseModelPool):
    def __init__(self):
        super().__init__({"_pretrained_": nn.Linear(2, 2)})

    def save_model(self, model, path):
        Path(path).mkdir(parents=True)
        (Path(path) / "weights").write_text("saved")


def program(**options) -> MergingProgram:
    parts = ("Registering", "Pool")
    configs = [OmegaConf.create({"_target_": f"{__name__}.{part}"}) for part in parts]
    return MergingProgram(*configs, None, print_config=False, **options)


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv(
        "TERM_COLOR_SCHEME", "dark"
    )  # FusionBench asks the terminal else


def test_a_job_of_a_sweep_leaves_no_registered_task(capsys):
    assert program().run()["report"] is None
    assert "wombats" not in CLIPTemplateFactory.get_available_datasets()
    assert "Nothing was evaluated" in capsys.readouterr().out


def test_a_model_is_not_saved_over_one_of_a_run_that_began_in_the_same_second(
    tmp_path, capsys
):
    lock = FileLock(tmp_path / "run" / ".lock")
    (tmp_path / "run").mkdir()
    with lock:  # as the other run holds it
        path = OmegaConf.create({"log_dir": str(tmp_path / "run")})
        program(path=path, merged_model_save_path="{log_dir}/model").run()
    assert not (tmp_path / "run" / "model").exists()
    assert (tmp_path / "run-2" / "model" / "weights").read_text() == "saved"
    said = "".join(capsys.readouterr().out.split())
    assert f"Mergedmodel:{tmp_path}/run-2/model" in said


def test_a_place_that_nothing_names_is_refused():
    method = SimpleNamespace(
        log_dir=None, _program=program(merged_model_save_path="{log_dir}/model")
    )
    with pytest.raises(ValueError, match="no logger and no path.log_dir says where"):
        results_folder(method)


def test_a_missing_logger_package_is_named_in_one_line(monkeypatch):
    monkeypatch.setattr(GlobalHydra, "is_initialized", lambda self: True)
    loggers = {"fabric": {"loggers": {"_target_": "no_such_logger.fabric.Logger"}}}
    message = "fabric.loggers needs the package no_such_logger: pip install no_such"
    with pytest.raises(CompactHydraException, match=message) as error:
        with one_line_errors("Again."):
            instantiate(loggers)
    assert "\n" not in str(error.value)
