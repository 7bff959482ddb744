"""Import modules of FusionBench that ask for another Python or transformers than we have.

This file is the only place that works around it:

- Several pools of FusionBench 0.2.33 (OpenCLIP, ResNet, ConvNeXt, DINOv2) do
  ``from typing import override``, which Python has only since 3.12; `typing_extensions`
  has the same decorator for all versions.
- Its CLIP task pools and methods import ``CLIPVisionTransformer``. transformers 5.6 made
  it one class with ``CLIPVisionModel``; the old name is given to that class.

It does nothing once FusionBench no longer asks for these names, and can then be deleted
together with the calls of its functions.
"""

from __future__ import annotations

import importlib
import sys
import threading
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

import typing_extensions

_NAME = "override"
_CLIP = "transformers.models.clip.modeling_clip"
_lock = threading.RLock()


def import_upstream(module: str) -> ModuleType:
    """Import a module of FusionBench, also one that needs names we can lend it.

    Afterwards FusionBench's own lazy names work too: once
    ``fusion_bench.modelpool.openclip_vision`` is imported,
    ``fusion_bench.modelpool.OpenCLIPVisionModelPool`` is found.

    Raises:
        ImportError: Something else is missing; where transformers lacks it, the message
            says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "transformers":
            raise ImportError(
                f"{module} cannot be used with the installed transformers"
                f" ({str(error).partition(' (')[0]}). Install FusionBench's newest release"
                " or an older transformers: pip install 'transformers<5'."
            ) from error
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


def keep_clip_name() -> None:
    """Let transformers' CLIP module keep the name ``CLIPVisionTransformer``.

    The module is not imported for it: the name is set once something else imports it.
    """
    if _CLIP in sys.modules:
        _name_tower(sys.modules[_CLIP])
    elif not any(isinstance(finder, _NamesTower) for finder in sys.meta_path):
        sys.meta_path.insert(0, _NamesTower())


def _name_tower(clip: typing.Any) -> None:
    if not hasattr(clip, "CLIPVisionTransformer"):
        clip.CLIPVisionTransformer = clip.CLIPVisionModel


class _NamesTower(MetaPathFinder):
    """Sets the name when the CLIP module is imported, and is then forgotten."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname != _CLIP:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_name(module: ModuleType) -> None:
                execute(module)
                _name_tower(module)

            spec.loader.exec_module = execute_and_name  # type: ignore[method-assign]
        return spec
