"""What every room uses: options, logging, sample order, optional packages, FusionBench."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

#: Module that the core does without -> the extra that brings it.
EXTRAS = {
    "jinja2": "report",
    "matplotlib": "report",
    "open_clip": "openclip",
    "peft": "peft",
    "shtab": "completion",
    "sklearn": "demo",
    "torchvision": "torchvision",
}


def how_to_get(module: str) -> str | None:
    """The command that installs an optional package; None where it is installed."""
    if find_spec(module) is not None:
        return None
    return f"pip install 'fusion-plugins[{EXTRAS[module]}]'"


def require(module: str, purpose: str) -> None:
    """Check that an optional package is installed, before anything slow.

    Args:
        module: Its name in `EXTRAS`.
        purpose: What needs it, to start the message with.

    Raises:
        ModuleNotFoundError: It is not; the message names the extra to install.
    """
    command = how_to_get(module)
    if command is not None:
        raise ModuleNotFoundError(f"{purpose} needs {module}: {command}.", name=module)


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
