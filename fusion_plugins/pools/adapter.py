"""What a test-time method needs to know of a family of model pools."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from fusion_bench.modelpool import BaseModelPool
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..merged.cards import pool_card
from ..merged.model import TintedModel
from ..merged.sites import check_task_names
from ..task_vectors.checks import check_experts_given
from .family import (
    ADAPTERS,
    SPLITS,
    Finish,
    ModelFamily,
    adapter_for,
    class_name,
    import_families,
)
from .loading import head_site
from .recalibration import recalibrate
from .task_heads import with_task_heads


class AdapterFinish(Finish):
    """Gives a merge its experts' heads, and running statistics of its own activations."""

    def _check(self, module: nn.Module) -> None:
        if head_site(self.modelpool, module) is not None:
            check_task_names(self.modelpool.model_names)
        self._samples = self.adapter
        if self.statistics.recalibrates:
            if self.adapter is None:
                self._samples = adapter_for(self.modelpool, self.options.tasks)
            self._samples.check_datasets(self.options.data)

    def complete(self, merged: nn.Module, device: torch.device) -> nn.Module:
        merged = with_task_heads(merged, self.modelpool)
        if not self.statistics.recalibrates:
            return merged
        if self.adapter is None:
            self._samples.prepare(device)
        return recalibrate(
            merged,
            self.modelpool,
            per_task=self.options.batch_norm.per_task,
            samples=self.options.batch_norm_samples,
            data=self.options.data,
            seed=self.seed,
            adapter=self._samples,
            device=device,
        )

    def card(self, label: str, settings: Any, merged: nn.Module) -> str:
        text = pool_card(label, settings, self.modelpool)
        if isinstance(merged, TintedModel):
            merged.card = text
        return text


class PoolAdapter(ModelFamily, ABC):
    """One family of pools: its models' files and heads, and its tasks' batches.

    The class methods are asked by every method, also by data-free ones; an instance is
    made only to adapt on data.

    Args:
        modelpool: The pool.
        task_info: Task name -> what the family needs to know of an own task.

    Raises:
        ValueError: `task_info` names a task the pool does not have.
    """

    has_data = True
    finish = AdapterFinish

    #: Frozen layers between the merged module and the heads that may be tinted.
    outer_layers: ClassVar[tuple[str, ...]] = ()
    #: Whether :meth:`heads` are layers that can be learned (``tint=head``).
    heads_are_layers: ClassVar[bool] = True
    #: Whether heads give outputs at many places, shape (samples, ..., channels).
    dense: ClassVar[bool] = False

    def has_classes(self, task: str) -> bool:
        """Whether a task's outputs are scores of classes (in the last dimension)."""
        return True

    def __init__(self, modelpool: BaseModelPool, task_info: Mapping | None = None):
        if not isinstance(task_info or {}, Mapping):
            raise ValueError(
                f"tasks is {task_info!r}, expected a description for each own task, such"
                " as {my_task: {...}}."
            )
        self.modelpool = modelpool
        self.task_info = dict(task_info or {})
        self.tasks = tuple(modelpool.model_names)
        unknown = [task for task in self.task_info if task not in self.tasks]
        if unknown:
            raise ValueError(
                f"`tasks` describes {unknown}, but the pool's experts are"
                f" {list(self.tasks)}. Names must be those under `models`."
            )

    def check_datasets(self, split: str) -> None:
        """Fail before anything is loaded if a task has no samples to adapt on.

        Raises:
            ValueError: Unknown split, or the pool lists no such dataset for a task.
        """
        if split not in SPLITS:
            raise ValueError(f"data is {split!r}, expected one of {SPLITS}.")
        check_experts_given(self.tasks)
        listed = getattr(self.modelpool, f"{split}_dataset_names")
        missing = [task for task in self.tasks if task not in listed]
        if missing:
            raise ValueError(
                f"Adaptation needs unlabelled {split} samples of every task, but the pool"
                f" lists no {split}_datasets for {missing}. Use a pool that does (those"
                " named *_model_only do not), or another split with method.data."
            )

    def dataset(self, task: str, split: str) -> Dataset:
        """Raw samples of a task; labels in them are never read."""
        return getattr(self.modelpool, f"load_{split}_dataset")(task)

    def keep(self, dataset: Dataset) -> None:
        """Share what a data set of :meth:`dataset` encodes with equal ones, if it can."""

    @property
    def outer_module(self) -> nn.Module:
        """The module that holds `outer_layers`, after :meth:`prepare`."""
        raise AttributeError(f"{type(self).__name__} has no layers outside the model.")

    @abstractmethod
    def prepare(self, device: torch.device) -> None:
        """Load what encoding, features and heads need."""

    @abstractmethod
    def encode(self, sample: object) -> Tensor:
        """A raw sample as the tensor to keep; compact, preprocessed."""

    @abstractmethod
    def decode(self, stored: Tensor) -> Tensor:
        """Kept tensors, shape (samples, ...), as model inputs."""

    @abstractmethod
    def features(self, module: nn.Module, inputs: Tensor) -> Tensor:
        """What the heads take, shape (samples, ...)."""

    @abstractmethod
    def heads(self) -> dict[str, nn.Module]:
        """A frozen head per task: features -> logits, shape (samples, classes).

        Where they are outside the merged module, a :class:`ClassificationHead`; where
        :meth:`head_site` names a place, what :meth:`load_head` gives.
        """


def register_adapter(pool_class: type, adapter: type[ModelFamily]) -> None:
    """Teach all methods a pool class; its subclasses are known too.

    Args:
        pool_class: A model pool class.
        adapter: What knows it. Replaces the adapter known so far.

    Raises:
        TypeError: Not a pool class, or not an adapter class.
    """
    if not (isinstance(pool_class, type) and issubclass(pool_class, BaseModelPool)):
        raise TypeError(f"{pool_class!r} is not a subclass of BaseModelPool.")
    if not (isinstance(adapter, type) and issubclass(adapter, ModelFamily)):
        raise TypeError(f"{adapter!r} is not a subclass of PoolAdapter.")
    import_families()  # which must not undo it later
    ADAPTERS[class_name(pool_class)] = adapter
