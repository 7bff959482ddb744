"""Runs of AdaMerging on toy pools that write into folders, and what they have done."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import torch
from fusion_bench.modelpool import BaseModelPool
from lightning import Fabric
from test_adamerging_algorithm import ToyAdapter, toy_models
from torch import Tensor, nn

from fusion_plugins import AdaMergingAlgorithm
from fusion_plugins.adaptation import Engine
from fusion_plugins.pools import register_adapter

STEPS, EVERY = 8, 3


class OwnHeadsPool(BaseModelPool):
    """Experts whose last layer is a head of their own."""


class Adapter(ToyAdapter):
    """Toy data of any task, and a list of the tasks whose data were read."""

    def __init__(self, modelpool, task_info=None):
        super().__init__(modelpool, task_info)
        self.read: list[str] = []

    def dataset(self, task: str, split: str) -> Tensor:
        self.read.append(task)
        generator = torch.Generator().manual_seed(self.tasks.index(task))
        return torch.randn(30, 10, generator=generator)


class OwnHeads(Adapter):
    @classmethod
    def head_site(cls, module: nn.Module) -> str:
        return "3"


register_adapter(OwnHeadsPool, OwnHeads)


def algorithm(folder: Path, kind=AdaMergingAlgorithm, **options):
    """A method with checkpoints and a log folder, but no logger."""
    options = {"steps": STEPS, "lr": 1e-2, "guard_every": 4} | options
    options = {"preset": "official"} | options
    options = {"checkpoint_every": EVERY, "num_workers": 0} | options
    options = {"checkpoint_dir": str(folder / "kept"), "save_model": False} | options
    return on_cpu(kind(**options), folder / "log")


def on_cpu(method, log: Path):
    method.fabric = Fabric(accelerator="cpu", devices=1)
    method._program = SimpleNamespace(path={"log_dir": str(log)})
    return method


def run(folder: Path, models=None, adapter=Adapter, **options) -> AdaMergingAlgorithm:
    method = algorithm(folder, **options)
    models = toy_models() if models is None else models
    method.merged = method.run(models, adapter(BaseModelPool(dict(models))))
    return method


def written(folder: Path) -> list[str]:
    """Names of the files in a run's log folder."""
    names = [path.name for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in names if name != ".lock")


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "kept").glob("*/step_*"))


def count_steps(monkeypatch) -> list[int]:
    """Steps learned from now on."""
    seen, step = [], Engine.train_step

    def counted(engine):
        seen.append(engine.step)
        return step(engine)

    monkeypatch.setattr(Engine, "train_step", counted)
    return seen


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return (
        all(torch.equal(one[n], other[n]) for n in one) and one.keys() == other.keys()
    )
