"""The program behind `fusion_bench`: what one job leaves for the next."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from fusion_bench import BaseAlgorithm, BaseModelPool, BaseTaskPool
from fusion_bench.mixins import SimpleProfilerMixin
from fusion_bench.programs import fabric_fusion_program
from fusion_bench.tasks.clip_classification import CLIPTemplateFactory
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import setup_globals
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.fabric.loggers.logger import Logger
from omegaconf import OmegaConf
from torch import nn

from fusion_plugins.cli import merging
from fusion_plugins.cli.merging import MergingProgram
from fusion_plugins.common.folders import results_folder
from fusion_plugins.common.running import one_line_errors
from fusion_plugins.compare import reports
from fusion_plugins.compare.reports import report_scores, sweep_table
from fusion_plugins.pools.clip_tasks import register_clip_task


class Registering(SimpleProfilerMixin, BaseAlgorithm):
    def run(self, modelpool):
        self.print_profile_summary()
        register_clip_task("wombats", ["young", "old"], ["a {} wombat"])
        return modelpool.load_model("_pretrained_")


class Saving(BaseAlgorithm):
    """A method that saves its model itself, as learned merges do."""

    def __init__(self, path, **kwargs):
        self.saved_model = Path(path)
        super().__init__(**kwargs)

    def run(self, modelpool):
        self.saved_model.mkdir()
        return modelpool.load_model("_pretrained_")


class Tasks(BaseTaskPool):
    def evaluate(self, model):
        return {"digits": {"accuracy": 0.25, "loss": 2.0}, "letters": {"accuracy": 0.5}}


class Told(Logger):
    """A logger that remembers what it was told."""

    name, version, log_dir = "told", 0, "."
    metrics: dict = {}
    params: dict = {}

    def log_metrics(self, metrics, step=None):
        Told.metrics = metrics

    def log_hyperparams(self, params):
        Told.params = params


class Pool(BaseModelPool):
    def __init__(self):
        super().__init__({"_pretrained_": nn.Linear(2, 2)})

    def save_model(self, model, path):
        Path(path).mkdir(parents=True)
        (Path(path) / "weights").write_text("saved")


def part(name: str, **options):
    return OmegaConf.create({"_target_": f"{__name__}.{name}", **options})


def program(method="Registering", taskpool=None, **options) -> MergingProgram:
    configs = part(method) if isinstance(method, str) else method, part("Pool")
    return MergingProgram(*configs, taskpool, print_config=False, **options)


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv(
        "TERM_COLOR_SCHEME", "dark"
    )  # FusionBench asks the terminal else


def test_a_job_of_a_sweep_leaves_no_registered_task(capsys):
    assert program().run()["report"] is None
    assert "wombats" not in CLIPTemplateFactory.get_available_datasets()
    said = capsys.readouterr().out
    assert "Nothing was evaluated" in said and "Profiler" not in said


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
    assert f"Results:{tmp_path}/run" in said  # without a logger, too


def test_a_model_that_its_method_has_saved_is_not_saved_again(tmp_path, capsys):
    own = tmp_path / "own"
    program(part("Saving", path=str(own))).run()
    assert list(own.iterdir()) == []
    assert f"Merged model: {own}" in capsys.readouterr().out.replace("\n", "")


def test_a_run_tells_the_users_logger_its_options_and_accuracies(tmp_path, monkeypatch):
    monkeypatch.setattr(fabric_fusion_program, "get_hydra_output_dir", lambda: ".")
    fabric = {"_target_": "lightning.Fabric", "accelerator": "cpu", "devices": 1}
    logger = {"_target_": f"{__name__}.Told"}
    method = part("Saving", path=str(tmp_path / "own"))
    program(
        method, part("Tasks"), fabric=OmegaConf.create({**fabric, "loggers": logger})
    ).run()
    assert Told.params["options"] == OmegaConf.to_container(method)
    assert Told.params["seed"] is None
    assert Told.metrics == {
        "average/accuracy": 0.375,
        "digits/accuracy": 0.25,
        "digits/loss": 2.0,
        "letters/accuracy": 0.5,
    }


def test_reports_of_several_models_are_left_to_fusion_bench():
    assert not program()._show([{"digits": {"accuracy": 0.5}}, {"model_info": {}}])
    assert program()._show({"model_info": {"all_params": 2}})


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


def test_numbers_of_fusionbenchs_methods_are_looked_at_before_a_pool():
    method = {"_target_": "fusion_bench.method.TaskArithmeticAlgorithm"}
    run = program(OmegaConf.create(method | {"scaling_factor": None}))
    with pytest.raises(ValueError, match="scaling_factor is None, expected a number"):
        run.run()
    assert not hasattr(run, "modelpool")


def test_an_interruption_says_how_to_go_on(monkeypatch, capsys):
    monkeypatch.setattr(GlobalHydra, "is_initialized", lambda self: True)
    with pytest.raises(SystemExit) as left, one_line_errors("The command continues."):
        raise KeyboardInterrupt
    assert left.value.code == 130
    assert capsys.readouterr().err == "\nInterrupted. The command continues.\n"


def job_of_a_sweep(folder, scaling, accuracy):
    hydra = SimpleNamespace(
        sweep=SimpleNamespace(dir=str(folder)),
        overrides=SimpleNamespace(task=["method=x", f"scaling={scaling}"]),
    )
    return sweep_table(hydra, report_scores({"digits": {"accuracy": accuracy}}))


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """What a job of a sweep over the words gets as its configuration."""

    def prepare(*words: str, number: int = 0, params=None, **options):
        noted = {"hydra": {"overrides": {"task": ["method.lr=0.1,0.2", *words]}}}
        OmegaConf.save(OmegaConf.create(noted), tmp_path / "multirun.yaml")
        job = SimpleNamespace(
            mode=RunMode.MULTIRUN,
            job=SimpleNamespace(num=number),
            sweep=SimpleNamespace(dir=str(tmp_path)),
            sweeper={"params": params},
            overrides=SimpleNamespace(task=[]),
        )
        monkeypatch.setattr(merging, "_job", lambda: job)
        setup_globals()
        config = {
            "_target_": merging._THEIRS,
            "print_config": False,
            "print_function_call": False,
            "path": {"log_dir": "logs/${now:%Y}"},
        }
        return merging.prepared(OmegaConf.create(config | options))

    return prepare


@pytest.mark.parametrize("option", ["merged_model_save_path", "report_save_path"])
def test_a_sweep_does_not_write_all_jobs_to_one_place(prepare, option):
    where = {"merged_model_save_path": "a/b", "report_save_path": "a/b.json"}[option]
    other = where.replace("b", "b-${hydra:job.num}")
    message = f"{option}={where} is the same in all jobs .* Give '{option}={other}'."
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
        prepare(f"{option}={where}", **{option: where})
    prepare(**{option: None})
    prepare(f"{option}={where},c", **{option: where})
    prepare(params={option: f"{where},c"}, **{option: where})
    prepare(**{option: "a/${path.log_dir}"})
    prepare(**{option: "{log_dir}/b"})


def test_jobs_of_a_sweep_have_folders_of_their_own(prepare):
    first, second = (prepare(number=n).path.log_dir for n in (0, 1))
    assert second == f"{first}-2"
    assert prepare(number=1, path={"log_dir": "mine"}).path.log_dir == "mine"


def test_jobs_of_a_sweep_that_end_together_are_all_in_its_table(tmp_path, monkeypatch):
    write = reports.write_json

    def slowly(*arguments):
        time.sleep(0.05)
        write(*arguments)

    monkeypatch.setattr(reports, "write_json", slowly)
    with ThreadPoolExecutor(3) as jobs:
        list(jobs.map(partial(job_of_a_sweep, tmp_path), range(3), (0.1, 0.2, 0.3)))
    assert len(json.loads((tmp_path / "sweep.json").read_text())) == 3


def test_jobs_of_a_sweep_share_a_table_the_best_first(tmp_path):
    rows = ((0.2, 0.25), (0.3, 0.75), (0.4, 0.5))
    shown = [job_of_a_sweep(tmp_path, *row) for row in rows]
    jobs, values = (list(column.cells) for column in shown[-1].columns)
    assert [str(job) for job in jobs] == [
        f"method=x, scaling={s}" for s in (0.3, 0.4, 0.2)
    ]
    assert [str(value) for value in values] == ["75.0", "50.0", "25.0"]
