"""FusionBench's NYUv2 task pool for models whose layers differ between tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusion_bench.models.nyuv2.lightning_module import NYUv2MTLModule
from fusion_bench.taskpool.nyuv2_taskpool import NYUv2TaskPool as _NYUv2TaskPool
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import DataLoader

from ..common.upstream import modelpool_of, test_datasets_of
from ..merged.model import TintedModel
from ..pools.loading import load_model

_ANGLES = {"mean": "mean_err", "median": "median_err"}


class NYUv2TaskPool(_NYUv2TaskPool):
    """Evaluates tinted models task by task, with their own decoders where tinted.

    Everything else is evaluated as FusionBench does. Beside its report stand the same
    numbers as those of other task pools, {task: {metric: value}}; the mean and the median
    angle of the normals, in degrees, are there `mean_err` and `median_err`.

    Args:
        data_dir: Holds the folder ``nyuv2`` with the preprocessed images.
        tasks: Tasks to evaluate.
        batch_size: Images per step.
        num_workers: Processes that read images.
    """

    def __init__(
        self,
        data_dir: str = ".cache",
        tasks: Sequence[str] = ("segmentation", "depth", "normal"),
        batch_size: int = 16,
        num_workers: int = 4,
    ):
        options: dict[str, object] = {"data_dir": str(data_dir), "tasks": list(tasks)}
        options |= {"batch_size": batch_size, "num_workers": num_workers}
        super().__init__(OmegaConf.create(options))
        # As other task pools name their tasks; to evaluate some only, leave out others.
        test_datasets_of.put(self, dict.fromkeys(tasks))

    def evaluate(self, encoder: nn.Module) -> dict[str, Any]:
        self.config.tasks = list(test_datasets_of(self))
        report = self._evaluate(encoder)
        return report | {task: _of_task(report, task) for task in self.config.tasks}

    def _evaluate(self, encoder: nn.Module) -> dict[str, float]:
        if not isinstance(encoder, TintedModel):
            return super().evaluate(encoder)
        report: dict[str, float] = {}
        loss = 0.0
        for task in self.config.tasks:
            with encoder.for_task(task):
                found = self._evaluate_task(encoder, task)
            loss += found.pop("val/loss")
            report |= found
        return report | {"val/loss": loss}

    def get_decoders(self) -> nn.ModuleDict:
        """As FusionBench's, but what a checkpoint lacks is an error, not random."""
        return nn.ModuleDict({task: self._decoder(task) for task in self.config.tasks})

    def _decoder(self, task: str) -> nn.Module:
        model: Any = load_model(modelpool_of(self), task, encoder_only=False)
        return model.decoders[task]

    def _evaluate_task(self, model: TintedModel, task: str) -> dict[str, float]:
        head = model.head(task)
        decoder = self._decoder(task) if head is None else head.decoder
        module = NYUv2MTLModule(
            model, nn.ModuleDict({task: decoder}), tasks=[task], task_weights=[1]
        )
        loader = DataLoader(
            self.load_datasets()[1],
            batch_size=self.config.batch_size,
            num_workers=self.config.num_workers,
        )
        return dict(self.trainer.validate(module, loader)[0])


def _of_task(report: Mapping[str, float], task: str) -> dict[str, float]:
    start = f"val/{task}_"
    found = {k.removeprefix(start): v for k, v in report.items() if k.startswith(start)}
    return {_ANGLES.get(name, name): value for name, value in found.items()}
