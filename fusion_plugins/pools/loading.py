"""From a model pool to a base module and task vectors, never holding all experts."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from fusion_bench.modelpool import BaseModelPool
from fusion_bench.utils import LazyStateDict
from fusion_bench.utils.lazy_state_dict import resolve_checkpoint_path
from torch import nn
from transformers.utils import SAFE_WEIGHTS_NAME, WEIGHTS_NAME

from ..common import get_logger
from ..common.upstream import models_of
from ..modelpool import holds_safetensors, load_exactly
from ..modelpool.folders import ADAPTER_CONFIG, FolderModelPool, accounted, source_of
from ..task_vectors import (
    Checkpoint,
    SafetensorsCheckpoint,
    StateDictCheckpoint,
    TaskVectors,
    files,
)
from ..task_vectors import names as known
from ..task_vectors.checkpoint import SpilledCheckpoint, module_checkpoint
from ..task_vectors.checks import say_other_config
from ..task_vectors.files import one_line, require_plain_weights
from ..task_vectors.memory import copied, require_own_memory
from .family import PRETRAINED, as_modelpool, family_of, label_of

log = get_logger(__name__)


def load_base(modelpool: BaseModelPool) -> nn.Module:
    """A `modelpool`'s pretrained model, the caller's own; see :func:`load_module`."""
    return load_module(modelpool, PRETRAINED)


def load_module(modelpool: BaseModelPool, name: str) -> nn.Module:
    """A model of the pool as a module of the caller's own.

    Raises:
        ValueError: As :func:`load_model`, or the module cannot be built or changed.
    """
    model = load_model(modelpool, name)
    label = label_of(name)
    if isinstance(model, LazyStateDict):
        return _materialise(model, label)
    model = copied(model, label) if is_instance(modelpool, name) else model
    require_own_memory(model, label)
    return family_of(modelpool).adopt(model)


def load_model(
    modelpool: BaseModelPool, name: str, *args: Any, **options: Any
) -> nn.Module:
    """A model as the pool gives it, but with every tensor of its files accounted for.

    An expert that is a LoRA adapter is merged into the pool's pretrained model.

    Args:
        modelpool: The pool.
        name: The model.
        *args: For the pool's own ``load_model``.
        **options: For it too.

    Raises:
        ValueError: The model cannot be loaded exactly; the message names it.
    """
    load = partial(_load, modelpool, args=args, options=options)
    folder = adapter_folder(modelpool, name)
    if folder is None:
        return load(name, label_of(name), name == PRETRAINED)
    # On use: peft is slow to import, and a method that is handed on does without.
    adapters = import_module(".modelpool.adapters", __package__.rpartition(".")[0])
    adapter = adapters.Adapter(folder, label_of(name))
    adapter.check_base(_pretrained_source(modelpool))
    base = load(PRETRAINED, adapter.label, adapter.brings_head)
    base = (
        copied(base, label_of(PRETRAINED))
        if is_instance(modelpool, PRETRAINED)
        else base
    )
    if isinstance(base, LazyStateDict):
        base = _materialise(base, adapter.label)
    with accounted(adapter.label):
        return adapter.merged_into(base)


def adapter_folder(modelpool: BaseModelPool, name: str) -> Path | None:
    folder = source_of(models_of(modelpool).get(name))
    if folder is None or not Path(folder, ADAPTER_CONFIG).is_file():
        return None
    if name == PRETRAINED:
        raise ValueError(
            f"{label_of(name)} is an adapter ({folder}). Give the model it was trained on;"
            " experts may be adapters."
        )
    return Path(folder)


def _load(
    modelpool: BaseModelPool,
    name: str,
    label: str,
    new_head: bool,
    args: Any,
    options: Any,
) -> nn.Module:
    family = family_of(modelpool)
    with accounted(label, family.head_site, new_head):
        model = family.load_model(modelpool, name, label, *args, **options)
        require_plain_weights(model, label)
    return model


def _pretrained_source(modelpool: BaseModelPool) -> str | None:
    model = models_of(modelpool)[PRETRAINED]
    held = isinstance(model, nn.Module)
    return getattr(model, "name_or_path", None) or None if held else source_of(model)


def _materialise(lazy: LazyStateDict, label: str) -> nn.Module:
    if lazy.meta_module is None:
        raise ValueError(
            f"The lazily loaded model {lazy.checkpoint} knows no module class to build."
            " Give the pool a meta_module_class, or load it eagerly."
        )
    # Buffers that no file holds, such as position ids, have their values already.
    module = deepcopy(lazy.meta_module)._apply(
        lambda t: torch.empty_like(t, device="cpu") if t.is_meta else t
    )
    path = Path(resolve_checkpoint_path(lazy.checkpoint))
    tensors = (files.read_folder if path.is_dir() else files.read_tensors)(path, label)
    load_exactly(module, tensors, label, path)
    return module


def is_instance(modelpool: BaseModelPool, name: str) -> bool:
    """Whether the pool holds this model in memory and would hand out that very object."""
    return isinstance(models_of(modelpool)[name], nn.Module)


def load_task_vectors(
    models: Any, keep: Sequence[str] = ()
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
    base = module_checkpoint(module, label_of(PRETRAINED))
    experts = {name: expert_checkpoint(pool, name, module) for name in pool.model_names}
    return module, TaskVectors(base, experts, keep)


def head_site(modelpool: BaseModelPool, module: nn.Module) -> str | None:
    """Where in a `modelpool`'s module every expert has a head of its own, if it has."""
    return family_of(modelpool).head_site(module)


def expert_checkpoint(pool: BaseModelPool, name: str, module: nn.Module) -> Checkpoint:
    """Read an expert in place when its files allow it, else through a temporary copy."""
    base, label = module_checkpoint(module, label_of(PRETRAINED)), label_of(name)
    if name in (held := getattr(pool, "held", {})):  # by read_once
        return StateDictCheckpoint(held[name].state_dict(), label)
    if (streamed := _stream_files(pool, name, module, base, label)) is not None:
        return streamed
    model = load_model(pool, name)
    say_other_config(module, model, label)
    if isinstance(model, LazyStateDict):
        lazy = StateDictCheckpoint(model, label)
        fitted = _fitted(lazy, base, module, model.checkpoint)
        if model.meta_module is None or not (fitted is None or _of_pickle(model)):
            return fitted or lazy
        model = _materialise(model, label)
    if is_instance(pool, name):
        return known.named_like(base, StateDictCheckpoint(model.state_dict(), label))
    return SpilledCheckpoint(model, label)


def _of_pickle(lazy: LazyStateDict) -> bool:
    """Whether FusionBench reads the pickle of two files, where all others do not."""
    path = Path(resolve_checkpoint_path(lazy.checkpoint))
    return all((path / n).is_file() for n in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME))


def _stream_files(
    pool: BaseModelPool, name: str, module: nn.Module, base: Checkpoint, label: str
) -> Checkpoint | None:
    if (source := _files(pool, name)) is None or adapter_folder(pool, name):
        return None
    try:
        checkpoint = SafetensorsCheckpoint(source, label)
        fitted = _fitted(checkpoint, base, module, source)
    except ValueError as error:
        if holds_safetensors(source):
            raise
        # Pickles only: transformers knows how to load them.
        log.info("%s is loaded whole: %s", label, error)
        return None
    if fitted is not None:
        say_other_config(module, source, label)
    return fitted


def _fitted(
    checkpoint: Checkpoint, base: Checkpoint, module: nn.Module, source: object
) -> Checkpoint | None:
    """By the base's names; None if loading is to understand the others, or to refuse."""
    prefix = known.base_prefix(module)
    towers = (known.TOWER, prefix)
    names = known.fitted_names(
        checkpoint.specs, base.specs, towers, module, checkpoint.label
    )
    tied = {name for group in base.tied_groups() for name in group}
    left = checkpoint.specs.keys() - names.values()
    if base.specs.keys() - names.keys() - tied or known.unplaced_names(module, left):
        return None
    said = {n.removeprefix(prefix): s.removeprefix(prefix) for n, s in names.items()}
    known.say_renamed(said, checkpoint.label, source)
    return known.NamedAs(checkpoint, names)


def _files(pool: BaseModelPool, name: str) -> Path | None:
    config = models_of(pool)[name]
    if type(pool) is FolderModelPool:
        return Path(config) if isinstance(config, str) else None
    try:
        return family_of(pool).files(pool, name)
    except FileNotFoundError as error:
        raise ValueError(f"{label_of(name)}: {one_line(error)}") from error
