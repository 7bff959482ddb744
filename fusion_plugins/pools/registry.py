"""Which adapter knows which pool class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from fusion_bench.modelpool import BaseModelPool

from .family import ModelFamily

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
