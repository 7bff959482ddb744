"""Whether the pictures that a run leaves are rendered, which takes longer than a tiny run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from unittest import mock

from fusion_plugins import common

_WHOLE = {name: getattr(common, name) for name in ("lay_out", "save_figure")}


def blank() -> AbstractContextManager:
    """Inside, `save_pictures` calls what draws a picture and writes empty files."""
    return mock.patch.multiple(common, lay_out=lambda f: f, save_figure=_touch)


def rendered() -> AbstractContextManager:
    """Inside, files are whole, within `blank` too."""
    return mock.patch.multiple(common, **_WHOLE)


def _touch(figure: object, files: Mapping[str, Path]) -> None:
    for file in files.values():
        file.write_bytes(b"")
