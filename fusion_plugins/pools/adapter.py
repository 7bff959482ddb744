"""What a merging method needs to know of a family of model pools."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from fusion_bench.modelpool import BaseModelPool
from torch import Tensor, nn
from torch.utils.data import Dataset

SPLITS = ("test", "val", "train")


class PoolAdapter(ABC):
    """One family of pools: its models' files and heads, and its tasks' batches.

    The class methods are asked by every method, also by data-free ones; an instance is
    made only to adapt on data.

    Args:
        modelpool: The pool.
        task_info: Task name -> what the family needs to know of an own task.

    Raises:
        ValueError: `task_info` names a task the pool does not have.
    """

    #: Frozen layers between the merged module and the heads that may be tinted.
    outer_layers: tuple[str, ...] = ()
    #: Whether :meth:`heads` are layers that can be learned (``tint=head``).
    heads_are_layers: bool = True
    #: Whether heads give outputs at many places, shape (samples, ..., channels).
    dense: bool = False

    def has_classes(self, task: str) -> bool:
        """Whether a task's outputs are scores of classes (in the last dimension)."""
        return True

    @classmethod
    def files(cls, modelpool: BaseModelPool, name: str) -> Path | None:
        """Safetensors that hold what loading the model gives, if there are such.

        Returns:
            A file or folder that may be read in place of loading, or None.
        """
        return None

    @classmethod
    def load_model(
        cls, modelpool: BaseModelPool, name: str, label: str, *args, **options
    ) -> nn.Module:
        """What the pool loads; `label` is what error messages call it."""
        return modelpool.load_model(name, *args, **options)

    @classmethod
    def adopt(cls, module: nn.Module) -> nn.Module:
        """Undo what the pool has tacked onto a module while loading it."""
        return module

    @classmethod
    def head_site(cls, module: nn.Module) -> str | None:
        """Module path of the classification head that every expert has of its own.

        It is not merged: each task keeps its expert's. None where heads are outside the
        merged module.
        """
        return None

    @classmethod
    def load_head(cls, modelpool: BaseModelPool, task: str, site: str) -> nn.Module:
        """The head of one expert."""
        return modelpool.load_model(task).get_submodule(site)

    @classmethod
    def save_model(
        cls, modelpool: BaseModelPool, module: nn.Module, path: Path
    ) -> None:
        """Write a merged model in the pool's own format."""
        modelpool.save_model(module, str(path))

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
