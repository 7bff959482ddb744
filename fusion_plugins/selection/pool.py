"""A pool as selection sees it: experts read once, teacher labels made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from fusion_bench import BaseAlgorithm
from lightning import Fabric, seed_everything
from torch import Tensor, nn

from ..adaptation import AdaptationTask, SampleOrder
from ..common.options import WithOptions
from ..pools.adapter import PoolAdapter
from ..pools.family import PRETRAINED
from ..pools.labels import check_first_label, read_labels
from ..pools.replaced import read_once, with_shared_heads
from ..pools.task_heads import with_task_heads
from ..pools.tasks import DataOptions, build_tasks, chosen_samples
from .predictions import ModelPredictor
from .scoring import Logits, Scorer, agreement, negative_entropy, predict, taught

ORACLE = "oracle"
MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "agreement": agreement,
    "val": agreement,
    ORACLE: agreement,
    "entropy": negative_entropy,
}
# Measures that read labels -> the split that has them.
_LABELLED = {"val": "val", ORACLE: "test"}
#: Samples per task that candidates are scored on, where nothing else is said.
SAMPLES = 1000

_EVERY = 2**62


@dataclass(frozen=True)
class SelectionData:
    """What candidates are scored on.

    Attributes:
        score: ``agreement`` with the experts' predictions, ``val`` for agreement with the
            labels of the val split, ``oracle`` for that of the test split, or ``entropy``
            of the predictions, negative.
        options: Which samples.
        seed: Of their choice and order, and before every merge.
    """

    score: str = "agreement"
    options: DataOptions = field(default=DataOptions(max_samples=SAMPLES))
    seed: int = 0

    @property
    def split(self) -> str:
        return _LABELLED.get(self.score, self.options.split)

    @property
    def about(self) -> dict[str, Any]:
        """What a response says of it."""
        return {"score": self.score, "data": self.split, "seed": self.seed}


def require_classes(adapter: PoolAdapter) -> None:
    """Raise for tasks whose predictions cannot be compared.

    Raises:
        ValueError: They are not classes.
    """
    values = [t for t in adapter.tasks if adapter.dense or not adapter.has_classes(t)]
    if values:
        raise ValueError(
            f"Selection compares predicted classes, but {values} predict something else."
            " Leave these experts out of the pool, or set the options by hand."
        )


def require_labels(adapter: PoolAdapter, data: SelectionData) -> None:
    """Raise ValueError for a task without the labels that candidates are scored with."""
    for task in adapter.tasks if data.score in _LABELLED else ():
        dataset = adapter.dataset(task, data.split)
        check_first_label(task, getattr(dataset, "raw", dataset))


class SelectionPool:
    """Merges candidates of a pool and says what they predict.

    Args:
        adapter: Of the pool.
        data: What candidates are scored on.
        fabric: Device and precision.

    Attributes:
        scorer: Of all candidates.
        fabric: Device and precision.
        base: The pretrained model; not to be changed.
    """

    def __init__(self, adapter: PoolAdapter, data: SelectionData, fabric: Fabric):
        self.adapter, self._data, self.fabric = adapter, data, fabric
        self._view = read_once(adapter.modelpool)
        self.base = self._view.load_model(PRETRAINED)
        self.scorer = self._make_scorer()

    def merge(self, algorithm: BaseAlgorithm) -> nn.Module:
        """What a method makes of the pool, with the experts' own heads if they have any.

        Methods of FusionBench merge every tensor: they see experts that all have the
        pretrained model's head.

        Raises:
            TypeError: It gives no model.
        """
        seed_everything(self._data.seed, verbose=False)
        own = isinstance(algorithm, WithOptions)
        pool = self._view if own else with_shared_heads(self._view, self.base)
        merged = algorithm.run(pool)
        if not isinstance(merged, nn.Module):
            raise TypeError(
                f"{type(algorithm).__name__} gives a {type(merged).__name__}, not a model:"
                " there is nothing to score. Choose a method that merges into one model."
            )
        return merged if own else with_task_heads(merged, self.adapter.modelpool)

    def logits(self, model: nn.Module) -> Logits:
        """What a model predicts."""
        return self._predictor.logits(model)

    def _make_scorer(self) -> Scorer:
        data, names = self._data, self.adapter.tasks
        order = SampleOrder(data.seed, self.fabric.world_size)
        no_draws: dict[str, list[int]] = {name: [] for name in names}
        options = replace(data.options, split=data.split, monitored=_EVERY)
        tasks = build_tasks(self.adapter, order, no_draws, options, self.fabric)
        counts = [(task.name, task.source.count) for task in tasks]
        samples = [order.subset(name, count, count) for name, count in counts]
        self._predictor = ModelPredictor(self.adapter, tasks, self.fabric)
        if data.score in _LABELLED:
            classes = self._labels(tasks, samples, order, options)
        else:
            classes = taught(tasks, samples, self._expert)
        return Scorer(tasks, samples, classes, MEASURES[data.score])

    def _expert(self, index: int) -> Logits:
        return self.logits(self._view.load_model(self.adapter.tasks[index]))

    def _labels(
        self,
        tasks: Sequence[AdaptationTask],
        samples: Sequence[np.ndarray],
        order: SampleOrder,
        options: DataOptions,
    ) -> list[Tensor]:
        labels, logits = [], self.logits(self._view.load_model(PRETRAINED))
        for index, task in enumerate(tasks):
            data = self.adapter.dataset(task.name, options.split)
            places = chosen_samples(task.name, data, order, options)
            wanted = samples[index] if places is None else places[samples[index]]
            count = predict(tasks, index, samples[index][:1], logits).shape[-1]
            raw = getattr(data, "raw", data)
            labels.append(read_labels(task.name, raw, wanted, count))
        return labels
