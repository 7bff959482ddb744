"""A pool class of one's own, taught to AWD, AdaMerging and Tinting in one small class."""

import torch
from fusion_bench.modelpool import BaseModelPool
from torch import nn

from fusion_plugins.pools import register_adapter
from fusion_plugins.pools.own_heads import OwnHeadsAdapter


class SensorNet(nn.Module):
    """Readings (samples, 16) -> logits (samples, classes)."""

    def __init__(self, classes: int):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
        self.output = nn.Linear(8, classes)

    def forward(self, readings: torch.Tensor) -> torch.Tensor:
        return self.output(self.trunk(readings))


class SensorPool(BaseModelPool):
    """Models in memory, and a list of readings for every task."""

    def __init__(self, models: dict[str, nn.Module], readings: dict[str, list]):
        super().__init__(models)
        self.readings = readings


class SensorAdapter(OwnHeadsAdapter):
    head_names = ("output",)  # every expert keeps its own; the rest is merged

    def check_datasets(self, split):
        missing = [task for task in self.tasks if task not in self.modelpool.readings]
        if missing:
            raise ValueError(f"There are no readings for {missing}.")

    def dataset(self, task, split):
        return self.modelpool.readings[task]

    def encode(self, sample):
        return torch.tensor(sample, dtype=torch.float32)

    def decode(self, stored):
        return stored

    def outputs(self, module, inputs):
        return module(inputs)


register_adapter(SensorPool, SensorAdapter)
