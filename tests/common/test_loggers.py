"""What the user's loggers are given, read back from what they wrote."""

import sys
from types import ModuleType, SimpleNamespace

import pandas as pd
import pytest
from fusion_bench.utils import instantiate
from fusion_bench.utils.instantiate_utils import set_print_function_call
from lightning import Fabric
from lightning.fabric.loggers import CSVLogger, TensorBoardLogger
from lightning.fabric.loggers.logger import Logger
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from fusion_plugins.common.loggers import log_summary, log_table, prepare_loggers

NUMBERS = {"average/accuracy": 0.5, "digits/accuracy": 0.25}
SETTINGS = {"method": "awd", "seed": None, "options": {"alpha": 0.1, "over": [1, 2]}}
FRAME = pd.DataFrame({"label": ["awd", "x"], "digits": [0.25, None]}, dtype=object)


def give(*loggers):
    fabric = SimpleNamespace(loggers=loggers)
    log_summary(fabric, NUMBERS, SETTINGS)
    log_table(fabric, "summary", FRAME, "| a |\n|---|\n| 1 |")


def test_tensorboard_has_scalars_settings_and_table(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="", default_hp_metric=False)
    give(logger)
    events = EventAccumulator(str(tmp_path)).Reload()
    scalars = {
        n: [e.value for e in events.Scalars(n)] for n in events.Tags()["scalars"]
    }
    assert scalars == {name: [value] for name, value in NUMBERS.items()}
    start = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    values = HParamsPluginData.FromString(start).session_start_info.hparams
    assert values["method"].string_value == "awd"
    assert values["options/alpha"].number_value == 0.1
    (text,) = events.Tensors("summary/text_summary")
    assert text.tensor_proto.string_val == [b"| a |\n|---|\n| 1 |"]


def test_a_logger_without_settings_and_tables_has_the_numbers(tmp_path):
    give(CSVLogger(tmp_path, name="", version=""))
    head, line = (tmp_path / "metrics.csv").read_text().splitlines()
    assert dict(zip(head.split(","), line.split(","), strict=True)) == {
        "average/accuracy": "0.5",
        "digits/accuracy": "0.25",
        "step": "0",
    }


class Run:
    """W&B's run, as far as Lightning's logger needs it."""

    def __init__(self):
        self.logged, self.config = [], {}
        self.define_metric = lambda *_, **__: None

    def log(self, metrics):
        self.logged.append(metrics)


@pytest.fixture
def wandb(monkeypatch):
    """A module of the names that Lightning's logger uses; W&B itself is not required."""
    module, run = ModuleType("wandb"), Run()
    module.run, module.Table = run, lambda columns, data, dataframe: dataframe
    for name, part in {
        "sdk": "lib",
        "sdk.lib": "RunDisabled",
        "wandb_run": "Run",
    }.items():
        inner = ModuleType(f"wandb.{name}")
        setattr(inner, part, Run)
        monkeypatch.setitem(sys.modules, inner.__name__, inner)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return run


def test_wandb_has_numbers_settings_and_table(wandb, tmp_path, monkeypatch):
    pytorch = pytest.importorskip("lightning.pytorch.loggers.wandb")
    monkeypatch.setattr(pytorch, "_WANDB_AVAILABLE", True)
    give(pytorch.WandbLogger(save_dir=tmp_path, experiment=wandb))
    numbers, table = wandb.logged
    assert numbers == NUMBERS
    assert wandb.config["method"] == "awd" and wandb.config["options"]["alpha"] == 0.1
    pd.testing.assert_frame_equal(table["summary"], FRAME)


def test_any_logger_of_lightnings_is_told_everything():
    told = {}

    class Own(Logger):
        name, version = "own", 0

        def log_metrics(self, metrics, step=None):
            told["metrics"] = metrics

        def log_hyperparams(self, params):
            told["params"] = params

    give(Own())
    assert told == {"metrics": NUMBERS, "params": SETTINGS}


def made(loggers) -> Fabric:
    """The Fabric of a command whose `fabric.loggers` is this."""
    config = {"_target_": "lightning.Fabric", "accelerator": "cpu", "devices": 1}
    config = OmegaConf.create(config | {"loggers": loggers})
    prepare_loggers(config)
    with set_print_function_call(False):
        return instantiate(config)


@pytest.mark.parametrize("none", [None, False, []])
def test_no_logger_may_be_asked_for_in_several_ways(none):
    assert made(none).loggers == []


def test_several_loggers_are_taken(tmp_path):
    csv = {"_target_": "lightning.fabric.loggers.CSVLogger", "root_dir": str(tmp_path)}
    kinds = [type(logger) for logger in made([csv, csv]).loggers]
    assert kinds == [CSVLogger, CSVLogger]


@pytest.mark.parametrize("wrong", [True, "csv", 3, ["csv"], {"name": "csv"}])
def test_what_is_no_logger_is_refused(wrong):
    message = "fabric.loggers is .*, expected null for none.*fabric/loggers=NAME takes"
    with pytest.raises(ValueError, match=message):
        made(wrong)
