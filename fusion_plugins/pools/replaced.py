"""A view of a model pool in which some models are replaced, made when asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from typing import Any

from fusion_bench.modelpool import BaseModelPool
from torch import nn

from ..common.upstream import models_of, with_methods
from ..task_vectors.memory import copied
from .family import PRETRAINED, label_of
from .loading import head_site, is_instance, load_base, load_model, load_module


def with_experts(
    modelpool: BaseModelPool,
    make_expert: Callable[[str], nn.Module],
    also: Sequence[str] = (),
) -> BaseModelPool:
    """The same pool, whose experts come from `make_expert`.

    The view is an instance of the pool's own class, so methods that ask for a certain
    pool, its datasets or its processor find them. Models that the pool holds in memory
    are handed out as copies: methods that merge in place leave the caller's alone. Models
    that are added to the view are not in the pool.

    Args:
        modelpool: The pool to look through.
        make_expert: Expert name -> a new module, called at every load.
        also: Names of other models that come from it.
    """

    def load(
        view: Any, model_name_or_config: Any, *args: Any, **kwargs: Any
    ) -> nn.Module:
        name = model_name_or_config
        if not isinstance(name, str) or name not in models_of(modelpool):
            # A config, or a model that the method added to its view.
            return type(modelpool).load_model(view, name, *args, **kwargs)
        if name in modelpool.model_names or name in also:
            return make_expert(name)
        model = load_model(modelpool, name, *args, **kwargs)
        return copied(model, label_of(name)) if is_instance(modelpool, name) else model

    view = copy(modelpool)
    models_of.put(view, copy(models_of(modelpool)))
    return with_methods(view, load_model=load)


def read_once(modelpool: BaseModelPool) -> BaseModelPool:
    """The same pool, whose models are read now, held, and handed out as copies."""
    names = [PRETRAINED, *modelpool.model_names]
    held = {name: load_module(modelpool, name) for name in names}

    def make(name: str) -> nn.Module:
        return copied(held[name], label_of(name))

    view: Any = with_experts(modelpool, make, [PRETRAINED])
    view.held = held
    return view


def with_shared_heads(
    modelpool: BaseModelPool, base: nn.Module | None = None
) -> BaseModelPool:
    """The same `modelpool`, whose experts all have the pretrained model's head.

    Methods that merge every tensor can then merge experts whose own heads differ in
    shape. A pool without such heads is returned as it is.

    Args:
        modelpool: The pool.
        base: Its pretrained model, where that is loaded already.
    """
    base = load_base(modelpool) if base is None else base
    site = head_site(modelpool, base)
    if site is None:
        return modelpool
    parent, _, child = site.rpartition(".")
    head = base.get_submodule(site)

    def make_expert(name: str) -> nn.Module:
        expert = load_module(modelpool, name)
        setattr(expert.get_submodule(parent), child, deepcopy(head))
        return expert

    return with_experts(modelpool, make_expert)
