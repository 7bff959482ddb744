"""From a model pool to a base module and task vectors, never holding all experts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from fusion_bench.modelpool import BaseModelPool
from fusion_bench.utils import LazyStateDict
from safetensors.torch import save_model
from torch import nn

from ..common.logging import get_logger
from ..modelpool.folders import FolderModelPool
from ..task_vectors import (
    Checkpoint,
    SafetensorsCheckpoint,
    StateDictCheckpoint,
    TaskVectors,
)
from .family import family_of

log = get_logger(__name__)

PRETRAINED = "_pretrained_"


def as_modelpool(models) -> BaseModelPool:
    """A model pool from a pool, a dict of modules, or a dict of model folders.

    Raises:
        TypeError: Something else, or a mixed dict.
        ValueError: There is no ``_pretrained_`` model.
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
        pool = FolderModelPool({name: str(path) for name, path in models.items()})
    elif all(isinstance(model, nn.Module) for model in models.values()):
        pool = BaseModelPool(dict(models))
    else:
        kinds = {name: type(model).__name__ for name, model in models.items()}
        raise TypeError(f"A dict pool is all modules or all folders; got {kinds}.")
    if not pool.has_pretrained:
        raise ValueError(
            f"The model pool has no '{PRETRAINED}' model, only {pool.all_model_names}."
            " Task vectors are expert minus pretrained: add the model that all experts"
            f" were fine-tuned from as '{PRETRAINED}'."
        )
    return pool


def load_base(modelpool: BaseModelPool) -> nn.Module:
    """The pretrained model as a module of the caller's own; see :func:`load_module`."""
    return load_module(modelpool, PRETRAINED)


def load_module(modelpool: BaseModelPool, name: str) -> nn.Module:
    """A model of the pool as a module of the caller's own.

    Raises:
        ValueError: The pool gives a lazy state dict that knows no module class.
    """
    model = modelpool.load_model(name)
    if isinstance(model, LazyStateDict):
        return _materialise(model)
    model = deepcopy(model) if is_instance(modelpool, name) else model
    return family_of(modelpool).adopt(model)


def _materialise(lazy: LazyStateDict) -> nn.Module:
    if lazy.meta_module is None:
        raise ValueError(
            f"The lazily loaded model {lazy.checkpoint} knows no module class to build."
            " Give the pool a meta_module_class, or load it eagerly."
        )
    # Buffers that no file holds, such as position ids, have their values already.
    module = deepcopy(lazy.meta_module)._apply(
        lambda t: torch.empty_like(t, device="cpu") if t.is_meta else t
    )
    module.load_state_dict(dict(lazy.items()), strict=False)
    return module


def is_instance(modelpool: BaseModelPool, name: str) -> bool:
    """Whether the pool holds this model in memory and would hand out that very object."""
    return isinstance(modelpool._models[name], nn.Module)


def load_task_vectors(
    models, keep: Sequence[str] = ()
) -> tuple[nn.Module, TaskVectors]:
    """A fresh base module, and the pool's experts as task vectors relative to it.

    Args:
        models: Model pool, dict of modules, or dict of folders.
        keep: Patterns of tensors to leave as in the base.

    Returns:
        The module shares its tensors with the task vectors' base, so
        :func:`~fusion_plugins.task_vectors.merge_into` may overwrite it, once. Heads that
        the experts have of their own are not merged.
    """
    pool = as_modelpool(models)
    module = load_base(pool)
    site = head_site(pool, module)
    if site is not None:
        keep = (*keep, f"{site}.*")
    base = StateDictCheckpoint(module.state_dict(), "the base ('_pretrained_')")
    experts = {name: expert_checkpoint(pool, name, base) for name in pool.model_names}
    return module, TaskVectors(base, experts, keep)


def head_site(modelpool: BaseModelPool, module: nn.Module) -> str | None:
    """Where in the module every expert has a head of its own, if its family has such."""
    return family_of(modelpool).head_site(module)


def load_own_head(modelpool: BaseModelPool, task: str, site: str) -> nn.Module:
    """The frozen head of one expert, a module of the caller's own.

    Raises:
        ValueError: The expert has no such layer.
    """
    try:
        head = family_of(modelpool).load_head(modelpool, task, site)
    except AttributeError as error:
        raise ValueError(
            f"expert '{task}' has no layer '{site}', where the pretrained model has its"
            " classification head. Base and experts must be of one model class."
        ) from error
    return deepcopy(head).eval().requires_grad_(False)


def expert_checkpoint(pool: BaseModelPool, name: str, base: Checkpoint) -> Checkpoint:
    """Read an expert in place when its files allow it, else through a temporary copy."""
    label = f"expert '{name}'"
    streamed = _stream_files(pool, name, base, label)
    if streamed is not None:
        return streamed
    model = pool.load_model(name)
    if isinstance(model, LazyStateDict):
        return _only_base_names(StateDictCheckpoint(model, label), base)
    if is_instance(pool, name):
        return StateDictCheckpoint(model.state_dict(), label)
    return _SpilledCheckpoint(model, label)


def _stream_files(pool, name: str, base: Checkpoint, label: str) -> Checkpoint | None:
    source = _files(pool, name)
    if source is None:
        return None
    try:
        checkpoint = SafetensorsCheckpoint(source, label)
    except ValueError as error:  # pickles only: transformers knows how to load them
        log.info("%s is loaded whole: %s", label, error)
        return None
    tied = {name for group in base.tied_groups() for name in group}
    if any(n not in checkpoint.specs and n not in tied for n in base.specs):
        return None  # transformers renames keys while loading; let it
    return _only_base_names(checkpoint, base)


def _files(pool: BaseModelPool, name: str) -> Path | None:
    config = pool._models[name]
    if type(pool) is FolderModelPool:
        return Path(config) if isinstance(config, str) else None
    return family_of(pool).files(pool, name)


def _only_base_names(checkpoint: Checkpoint, base: Checkpoint) -> Checkpoint:
    # The files may hold more than the merged module, such as CLIP's text tower.
    checkpoint.specs = {n: s for n, s in checkpoint.specs.items() if n in base.specs}
    return checkpoint


class _SpilledCheckpoint(SafetensorsCheckpoint):
    """A model that had to be loaded whole, moved to a temporary file and forgotten."""

    def __init__(self, model: nn.Module, label: str):
        self._folder = tempfile.TemporaryDirectory(prefix="experts-")
        path = Path(self._folder.name) / "model.safetensors"
        save_model(model, str(path))
        super().__init__(path, label)
