"""What every room uses: options, logging, sample order, and the bridge to FusionBench."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_exports(
    package: str, exports: Mapping[str, str]
) -> tuple[Callable[[str], Any], list[str]]:
    """A package's `__getattr__` and `__all__`, so that importing it costs nothing.

    Args:
        package: The package's name.
        exports: Public name -> module that defines it, relative to the package.
    """

    def load(name: str) -> Any:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(exports[name], package), name)

    return load, sorted(exports)
