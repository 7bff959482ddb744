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

from ..common.options import Options, choice, integer
from ..merged.statistics import BatchNorm, RunningStatistics
from ..task_vectors import TaskVectors

SPLITS = ("test", "val", "train")


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
    """

    batch_norm: BatchNorm = choice(BatchNorm.AVERAGE)
    batch_norm_samples: int = integer(512, low=2)
    data: str = choice("test", SPLITS)


class Finish:
    """What makes the merged weights of a pool a whole model: its running statistics.

    Args:
        modelpool: The pool.
        module: The pretrained model.
        task_vectors: Base and experts.
        options: How to finish.
        adapter: What gives samples, prepared; None to find one by the pool's class.
        seed: Of the choice of samples.

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


class ModelFamily:
    """A family of model pools as data-free methods see it: files, heads, saving.

    This class serves pools that no family knows; families derive from
    :class:`~fusion_plugins.pools.adapter.PoolAdapter`, which knows their data too.
    """

    #: Whether instances give a task's batches, features and heads.
    has_data: ClassVar[bool] = False
    #: Finishes a merge.
    finish: ClassVar[type[Finish]] = Finish

    def __init__(self, modelpool: BaseModelPool, task_info: Any = None):
        raise NotImplementedError  # has_data says whether there are instances

    @classmethod
    def files(cls, modelpool: BaseModelPool, name: str) -> Path | None:
        """Safetensors that hold what loading the model gives, if there are such.

        Returns:
            A file or folder that may be read in place of loading, or None.
        """
        return None

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


# Full class name of a pool -> its adapter. By name: importing some of FusionBench's pools
# is slow or needs Python 3.12, and none of them is imported for the sake of another.
_ADAPTERS: dict[str, type[ModelFamily]] = {}


def family(*pool_classes: str) -> Callable[[type[ModelFamily]], type[ModelFamily]]:
    """A decorator with which a file of ``pools/families`` registers its adapter.

    Args:
        *pool_classes: Full names of the model pool classes it knows.
    """

    def register(adapter: type[ModelFamily]) -> type[ModelFamily]:
        _ADAPTERS.update(dict.fromkeys(pool_classes, adapter))
        return adapter

    return register


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
    _import_families()  # which must not undo it later
    _ADAPTERS[_name(pool_class)] = adapter


def family_of(modelpool: BaseModelPool) -> type[ModelFamily]:
    """The family of a pool; plain :class:`ModelFamily` if none knows it."""
    _import_families()
    names = (_name(kind) for kind in type(modelpool).__mro__)
    return next((_ADAPTERS[n] for n in names if n in _ADAPTERS), ModelFamily)


@cache
def _import_families() -> None:
    folder = Path(__file__).parent / "families"
    for module in sorted(path.stem for path in folder.glob("[!_]*.py")):
        import_module(f".families.{module}", __package__)


def adapter_for(modelpool: BaseModelPool, task_info: Mapping | None = None) -> Any:
    """The adapter of a pool's family, ready to be asked for data.

    Raises:
        TypeError: No family knows this pool.
    """
    adapter = family_of(modelpool)
    if not adapter.has_data:
        known = sorted(name.rpartition(".")[2] for name in _ADAPTERS)
        raise TypeError(
            f"Adaptation does not know the pool class {type(modelpool).__name__}; it knows"
            f" {known}. Data-free methods such as method=awd take any pool; to teach it a"
            " new one, see register_adapter."
        )
    return adapter(modelpool, task_info)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
