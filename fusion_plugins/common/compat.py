"""Import modules of FusionBench that ask for a newer Python than we do.

Several pools of FusionBench 0.2.33 (OpenCLIP, ResNet, ConvNeXt, DINOv2) do
``from typing import override``, which Python has only since 3.12; `typing_extensions` has
the same decorator for all versions. This file is the only place that works around it. It
does nothing on Python 3.12, or once FusionBench imports the name from elsewhere, and can
then be deleted together with the calls of :func:`import_upstream`.
"""

from __future__ import annotations

import importlib
import threading
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import typing_extensions

_NAME = "override"
_lock = threading.RLock()


def import_upstream(module: str) -> ModuleType:
    """Import a module of FusionBench, also one that needs ``typing.override``.

    Afterwards FusionBench's own lazy names work too: once
    ``fusion_bench.modelpool.openclip_vision`` is imported,
    ``fusion_bench.modelpool.OpenCLIPVisionModelPool`` is found.

    Args:
        module: Its full name, for example ``fusion_bench.modelpool.openclip_vision``.

    Raises:
        ImportError: Anything else than ``typing.override`` is missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name != "typing" or f"'{_NAME}'" not in str(error):
            raise
    with _lent_override():
        return importlib.import_module(module)


@contextmanager
def _lent_override() -> Iterator[None]:
    """``typing.override`` for the time of one import; other code never sees it for long."""
    with _lock:
        lent = not hasattr(typing, _NAME)
        if lent:
            setattr(typing, _NAME, typing_extensions.override)
        try:
            yield
        finally:
            if lent:
                delattr(typing, _NAME)
