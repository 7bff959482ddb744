"""What every method asks of a family of model pools, data-free ones too."""

from __future__ import annotations

from dataclasses import dataclass
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
