"""What a merged model of any kind says of a task's samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning import Fabric
from torch import Tensor, nn

from ..adaptation import AdaptationTask
from ..merged import sites
from ..merged.model import TintedModel
from ..pools.adapter import PoolAdapter
from .scoring import Logits


@dataclass(frozen=True)
class ModelPredictor:
    """Runs models of a pool's family.

    Attributes:
        adapter: Of the pool, prepared.
        tasks: With the heads of models that have none of their own.
        fabric: Device and precision.
    """

    adapter: PoolAdapter
    tasks: Sequence[AdaptationTask]
    fabric: Fabric

    def logits(self, model: nn.Module) -> Logits:
        """Of a model, which is put onto the device and into evaluation mode."""
        return partial(self._logits, model.to(self.fabric.device).eval())

    @torch.no_grad()
    def _logits(self, model: nn.Module, index: int, inputs: Tensor) -> Tensor:
        with self.fabric.autocast(), self._parts(model, index) as (trunk, head):
            return head(self.adapter.features(trunk, inputs)).float()

    @contextmanager
    def _parts(self, model: nn.Module, index: int) -> Iterator[tuple[nn.Module, Any]]:
        """The module that is run, and the head that follows it."""
        task = self.tasks[index]
        if not isinstance(model, TintedModel):
            yield model, task.head
            return
        with model.for_task(task.name):
            layers = model.outer_layers(task.name)
            outer = self.adapter.outer_module if layers else nn.Module()
            with sites.replaced(outer, layers):
                yield model.trunk, self._head(model, task)

    def _head(self, model: TintedModel, task: AdaptationTask) -> Any:
        site = self.adapter.head_site(model.trunk)
        if site in model.sites:
            return sites.option(model.switches[model.sites.index(site)], task.name)
        return model.head(task.name) or task.head
