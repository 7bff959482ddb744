"""The program behind `fusion_bench`: what one job leaves for the next."""

from fusion_bench import BaseAlgorithm, BaseModelPool
from fusion_bench.tasks.clip_classification import CLIPTemplateFactory
from omegaconf import OmegaConf
from torch import nn

from fusion_plugins.cli.merging import MergingProgram
from fusion_plugins.pools.clip_tasks import register_clip_task


class Registering(BaseAlgorithm):
    def run(self, modelpool):
        register_clip_task("wombats", ["young", "old"], ["a {} wombat"])
        return modelpool.load_model("_pretrained_")


class Pool(BaseModelPool):
    def __init__(self):
        super().__init__({"_pretrained_": nn.Linear(2, 2)})


def test_a_job_of_a_sweep_leaves_no_registered_task(capsys, monkeypatch):
    monkeypatch.setenv(
        "TERM_COLOR_SCHEME", "dark"
    )  # FusionBench asks the terminal else
    parts = ("Registering", "Pool")
    configs = [OmegaConf.create({"_target_": f"{__name__}.{part}"}) for part in parts]
    program = MergingProgram(*configs, None, print_config=False)
    assert program.run()["report"] is None
    assert "wombats" not in CLIPTemplateFactory.get_available_datasets()
    assert "Nothing was evaluated" in capsys.readouterr().out
