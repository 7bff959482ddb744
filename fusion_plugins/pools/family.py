"""Families of model pools: what every method asks of them, and which knows a pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
from fusion_bench.modelpool import BaseModelPool
from torch import nn

from ..common.folders import require_paths
from ..common.options import Options, choice, integer, mapping
from ..merged.statistics import BatchNorm, RunningStatistics
from ..modelpool.folders import FolderModelPool, check_names
from ..task_vectors import TaskVectors

PRETRAINED = "_pretrained_"
SPLITS = ("test", "val", "train")


def label_of(name: str) -> str:
    """What error messages call a model of a pool."""
    return "the base ('_pretrained_')" if name == PRETRAINED else f"expert '{name}'"


@dataclass(frozen=True, kw_only=True)
class FinishOptions(Options):
    """How a merge is finished.

    Args:
        batch_norm: Which running statistics batch normalisation uses: ``average`` of the
            experts', ``merged`` like weights, ``pretrained``, ``recalibrated`` or
            ``recalibrated_per_task``; see :mod:`fusion_plugins.merged.statistics`. The
            last two need samples.
        batch_norm_samples: Samples per task to estimate them on, unlabelled.
        data: Split the samples are from: ``test``, ``val`` or ``train``.
        tasks: What FusionBench does not know of own tasks; see the pool's adapter.
    """

    batch_norm: BatchNorm = choice(BatchNorm.AVERAGE)
    batch_norm_samples: int = integer(512, low=2)
    data: str = choice("test", SPLITS)
    tasks: dict[str, Any] | None = mapping("{my_task: {classnames: [...]}}")


class Finish:
    """What makes the merged weights of a pool a whole model: its running statistics.

    Args:
        modelpool: The pool.
        module: The pretrained model.
        task_vectors: Base and experts.
        options: How to finish.
        adapter: What gives samples, prepared; None to find one.
        seed: Of their choice.

    Attributes:
        statistics: What becomes of batch normalisation's running statistics.

    Raises:
        TypeError: The statistics are to be estimated, but no family gives samples.
    """

    def __init__(
        self,
        modelpool: BaseModelPool,
        module: nn.Module,
        task_vectors: TaskVectors,
        options: FinishOptions,
        adapter: Any = None,
        seed: int = 0,
    ):
        self.modelpool, self.options = modelpool, options
        self.adapter, self.seed = adapter, seed
        self.statistics = RunningStatistics(options.batch_norm, module, task_vectors)
        self._check(module)

    def _check(self, module: nn.Module) -> None:
        if self.statistics.recalibrates:
            raise TypeError(
                f"batch_norm={self.options.batch_norm.value} needs samples, and nothing"
                f" knows those of a {type(self.modelpool).__name__}. Use"
                " batch_norm=average, or register an adapter for this class."
            )

    @property
    def apart(self) -> list[str]:
        """Names of tensors that no rule merges."""
        return self.statistics.apart

    def __call__(self, merged: nn.Module, device: torch.device) -> nn.Module:
        """The whole model.

        Args:
            merged: The merged weights; changed in place.
            device: Where samples are run, if any are.
        """
        self.statistics.write(merged)
        return self.complete(merged, device)

    def complete(self, merged: nn.Module, device: torch.device) -> nn.Module:
        """All but the statistics that need no samples: they are written already."""
        return merged

    def card(self, label: str, settings: Any, merged: nn.Module) -> str | None:
        """A model card, if one is made."""
        return None


class ModelFamily:
    """A family of model pools as data-free methods see it: files, heads, saving.

    Serves pools that no family knows; families derive from ``PoolAdapter``.
    """

    #: Whether instances give a task's batches, features and heads.
    has_data: ClassVar[bool] = False
    #: Finishes a merge.
    finish: ClassVar[type[Finish]] = Finish

    def __init__(self, modelpool: BaseModelPool, task_info: Any = None):
        raise NotImplementedError  # has_data says whether there are instances

    @classmethod
    def files(cls, modelpool: BaseModelPool, name: str) -> Path | None:
        """Safetensors file or folder that holds what loading gives, if there is one."""
        return None

    @classmethod
    def load_model(
        cls, modelpool: BaseModelPool, name: str, label: str, *args: Any, **options: Any
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


# By a pool's full class name: no pool is imported for the sake of another.
ADAPTERS: dict[str, type[ModelFamily]] = {}


def family(*pool_classes: str) -> Callable[[type[ModelFamily]], type[ModelFamily]]:
    """A decorator that registers an adapter for pool classes, by their full names."""

    def register(adapter: type[ModelFamily]) -> type[ModelFamily]:
        ADAPTERS.update(dict.fromkeys(pool_classes, adapter))
        return adapter

    return register


def family_of(modelpool: BaseModelPool) -> type[ModelFamily]:
    """The family of a `modelpool`; plain :class:`ModelFamily` if none knows it."""
    import_families()
    names = map(class_name, type(modelpool).__mro__)
    return next(filter(None, map(ADAPTERS.get, names)), ModelFamily)


def as_modelpool(models: Any) -> BaseModelPool:
    """A model pool from `models`: a pool, a dict of modules, or a dict of folders.

    Raises:
        TypeError: Something else, a mixed dict, or a name is no text.
        ValueError: There is no ``_pretrained_`` model, or a path is none.
    """
    if isinstance(models, BaseModelPool):
        pool = models
    elif not isinstance(models, Mapping):
        raise TypeError(
            f"The model pool is a {type(models).__name__}; expected a FusionBench model"
            " pool, a dict of nn.Module, or a dict of folders, with the pretrained model"
            f" under '{PRETRAINED}'."
        )
    elif all(isinstance(model, (str, Path)) for model in models.values()):
        pool = FolderModelPool(require_paths("models", models))
    elif all(isinstance(model, nn.Module) for model in models.values()):
        pool = BaseModelPool(dict(models))
    else:
        kinds = {name: type(model).__name__ for name, model in models.items()}
        raise TypeError(f"A dict pool is all modules or all folders; got {kinds}.")
    check_names(pool)
    if not pool.has_pretrained:
        raise ValueError(
            f"The model pool has no '{PRETRAINED}' model, only {pool.all_model_names}."
            " Task vectors are expert minus pretrained: add the model that all experts"
            f" were fine-tuned from as '{PRETRAINED}'."
        )
    return pool


@cache
def import_families() -> None:
    """Let every file of ``families/`` register its adapter, once."""
    for file in sorted(Path(__file__).with_name("families").glob("[!_]*.py")):
        import_module(f".families.{file.stem}", __package__)


def adapter_for(modelpool: BaseModelPool, task_info: Mapping | None = None) -> Any:
    """The adapter of a pool's family, ready to be asked for data.

    Args:
        modelpool: The pool.
        task_info: Task name -> what the family needs to know of an own task.

    Raises:
        TypeError: No family knows this pool.
    """
    adapter = family_of(modelpool)
    if not adapter.has_data:
        known = sorted(name.rpartition(".")[2] for name in ADAPTERS)
        raise TypeError(
            f"Adaptation does not know the pool class {type(modelpool).__name__}, only"
            f" {known}. method=awd takes any pool; a new one: see register_adapter."
        )
    return adapter(modelpool, task_info)


def class_name(kind: type) -> str:
    """A class's full name, by which pools and methods of FusionBench are known."""
    return f"{kind.__module__}.{kind.__qualname__}"
