"""What goes into a method and what comes out of it: a pool of its own, its models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy, deepcopy

from fusion_bench import BaseModelPool
from torch import nn


def isolated(modelpool: BaseModelPool) -> BaseModelPool:
    """A view of the pool that a method may change without changing the pool.

    Models the pool holds in memory are copied, one at a time, when the view hands them out.
    """
    view = copy(modelpool)
    models = modelpool._models
    held = {name for name in models if isinstance(models[name], nn.Module)}
    view._models = dict(models) if held else deepcopy(models)
    if not held:
        return view
    kind = type(modelpool)

    class View(kind):
        def load_model(self, model_name_or_config, *args, **kwargs):
            model = super().load_model(model_name_or_config, *args, **kwargs)
            ours = any(model is other for other in models.values())
            return deepcopy(model) if ours else model

    View.__name__, View.__qualname__ = kind.__name__, kind.__qualname__
    View.__module__ = kind.__module__
    view.__class__ = View
    return view


def named_models(result: object) -> list[tuple[str | None, nn.Module]]:
    """The models a method returned; the name is None where there is just one.

    Raises:
        TypeError: There is none.
    """
    if isinstance(result, nn.Module):
        return [(None, result)]
    found = list(_walk(result))
    if not found:
        raise TypeError(
            f"The method returned {type(result).__name__}, expected a model, or models in"
            " a mapping or list."
        )
    return found


def _walk(result: object, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    if isinstance(result, Mapping):
        entries = result.items()
    elif isinstance(result, (list, tuple)):
        entries = enumerate(result)
    else:
        return
    for name, value in entries:
        path = f"{prefix}{name}"
        if isinstance(value, nn.Module):
            yield path, value
        else:
            yield from _walk(value, f"{path}.")
