"""Toy pools, and the compare program as the `fusion_bench` command builds it."""

import json
from pathlib import Path

import fusion_bench
import torch
from fusion_bench import BaseAlgorithm, BaseModelPool, BaseTaskPool
from fusion_bench.tasks.clip_classification import get_classnames_and_templates
from fusion_bench.utils import instantiate
from fusion_bench.utils.instantiate_utils import set_print_function_call_permeanent
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fusion_plugins.compare import CompareProgram, execution, gathering, program
from fusion_plugins.compare.methods import Method
from fusion_plugins.pools.clip_tasks import register_clip_task

SITE = Path(fusion_bench.__file__).resolve().parents[1]
UPSTREAM = next(
    folder
    for folder in (SITE / "fusion_bench_config", SITE / "config")
    if folder.is_dir()
)


def compose_compare(*overrides: str) -> DictConfig:
    """The job of `fusion_bench --config-name compare ...`, resolved."""
    with initialize_config_dir(str(UPSTREAM), version_base=None):
        job = compose("compare", list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(job)
        try:
            OmegaConf.set_struct(job, False)
            del job["hydra"]
            OmegaConf.resolve(job)
        finally:
            HydraConfig.instance().cfg = None
    return job


def make_program(folder, *overrides: str):
    """The program with its results in `folder`/results."""
    where = [
        f"path.output_dir={folder}",
        f"path.log_dir={folder}/log",
        f"results={folder}/results",
        "path.work_dir=.",
        "fabric.accelerator=cpu",
    ]
    return program_of(compose_compare(*where, *overrides))


def program_of(job: DictConfig):
    """The program of a composed job."""
    # It would ask the captured output for its file number.
    set_print_function_call_permeanent(False)
    return instantiate(job)


def linear(values) -> nn.Linear:
    layer = nn.Linear(len(values), 1, bias=False)
    layer.weight.data = torch.tensor([values], dtype=torch.float32)
    return layer


def toy_modelpool() -> BaseModelPool:
    """Weights held in memory: the base is 0, each expert is 1 in its own place."""
    return BaseModelPool(
        {
            "_pretrained_": linear([0.0, 0.0]),
            "left": linear([1.0, 0.0]),
            "right": linear([0.0, 1.0]),
        }
    )


class ToyTaskPool(BaseTaskPool):
    """A task's accuracy is its own weight; counts what it evaluated."""

    def __init__(self, tasks=("left", "right"), metric: str = "accuracy", **kwargs):
        self._test_datasets = {task: index for index, task in enumerate(tasks)}
        self.metric = metric
        self.evaluated: list[str] = []
        super().__init__(**kwargs)

    def evaluate(self, model):
        report = {"model_info": {"all_params": 2}, "average": {self.metric: 0.5}}
        for task, index in self._test_datasets.items():
            self.evaluated.append(task)
            weight = model.weight[0, index].item()
            report[task] = {self.metric: weight, "loss": 1 - weight}
        return report


class DrawWeights(BaseAlgorithm):
    """A method whose result depends on the seed alone."""

    def run(self, modelpool):
        model = modelpool.load_pretrained_model()
        nn.init.uniform_(model.weight)
        return model


class SpoilPool(BaseAlgorithm):
    """A method that changes every model and every entry it can reach."""

    def run(self, modelpool):
        merged = modelpool.load_pretrained_model()
        for name in modelpool.all_model_names:
            modelpool.load_model(name).weight.data.fill_(7.0)
        del modelpool._models["right"]
        torch.set_grad_enabled(False)
        return merged


class Broken(BaseAlgorithm):
    """A method that fails."""

    def run(self, modelpool):
        raise RuntimeError("no_weights & 100% broken")


class Several(BaseAlgorithm):
    """A method that returns one model per expert."""

    def run(self, modelpool):
        models = {name: modelpool.load_model(name) for name in modelpool.model_names}
        return {"models": models, "metadata": None}


class Nothing(BaseAlgorithm):
    """A method that returns no model."""

    def run(self, modelpool):
        return None


class ToyMethods:
    """Rows whose classes are in this file, for a program without method configs."""

    def __init__(self, *names: str):
        self.names = names

    def __call__(self, listed, common):
        return [make_method(name) for name in self.names]


def make_method(name: str, **overrides) -> Method:
    if name in ("pretrained", "experts"):
        return Method(name)
    config = {"_target_": f"running.{name}", **overrides}
    return Method(name, overrides, OmegaConf.create(config))


def toy_program(
    folder, seeds=(0,), taskpool=None, modelpool=None, **options
) -> CompareProgram:
    """A program on the toy pools; replace its `read_methods` by `ToyMethods`."""
    return CompareProgram(
        OmegaConf.create({"_target_": "running.toy_modelpool", **(modelpool or {})}),
        OmegaConf.create({"_target_": "running.ToyTaskPool", **(taskpool or {})}),
        methods=["replaced"],
        seeds=seeds,
        results=str(folder),
        title="toy",
        fabric=OmegaConf.create(
            {"_target_": "lightning.Fabric", "accelerator": "cpu", "devices": 1}
        ),
        print_config=False,
        print_function_call=False,
        **options,
    )


def run_toy(monkeypatch, folder, *names: str, **options) -> dict[str, dict]:
    """Run a toy comparison; returns its records by id."""
    monkeypatch.setattr(program, "read_methods", ToyMethods(*names))
    # Both are slow beside a toy cell: collecting a big process's garbage, and the report.
    monkeypatch.setattr(execution, "_free_memory", lambda: None)
    monkeypatch.setattr(gathering, "_write_report", lambda *_: None)
    toy_program(folder, **options).run()
    return read_cells(folder)


def read_cells(folder) -> dict[str, dict]:
    paths = sorted((Path(folder) / "cells").glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in paths}


class Scaled(BaseAlgorithm):
    """A method with two options."""

    def __init__(self, scaling: float, power: int, **kwargs):
        self.scaling, self.power = scaling, power
        super().__init__(**kwargs)

    def run(self, modelpool):
        model = modelpool.load_pretrained_model()
        model.weight.data.fill_(self.scaling**self.power)
        return model


def file_modelpool(path: str) -> BaseModelPool:
    """An expert whose weight is read from a file whenever the pool is made."""
    models = toy_modelpool()._models
    models["left"].weight.data[0, 0] = float(Path(path).read_text())
    return BaseModelPool(models)


class FileTaskPool(ToyTaskPool):
    """A task's accuracy is scaled by a number in a file."""

    def __init__(self, path: str, **kwargs):
        self.path = path
        super().__init__(**kwargs)

    def evaluate(self, model):
        report, scale = super().evaluate(model), float(Path(self.path).read_text())
        return {t: {m: scale * v for m, v in r.items()} for t, r in report.items()}


class ClassesTaskPool(ToyTaskPool):
    """The accuracy on mnist is a tenth of its number of class names."""

    def __init__(self, **kwargs):
        super().__init__(tasks=["mnist"], **kwargs)

    def evaluate(self, model):
        names, _ = get_classnames_and_templates("mnist")
        return {"mnist": {"accuracy": len(names) / 100}}


class RegisterClasses(DrawWeights):
    """A method that registers class names of its own for mnist."""

    def run(self, modelpool):
        register_clip_task("mnist", ["one", "two"], ["a {}."])
        return super().run(modelpool)
