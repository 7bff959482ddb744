"""Whether the pictures that a run leaves are rendered, which takes longer than a tiny run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from unittest import mock

from fusion_plugins import common

_render = common._render


def blank() -> AbstractContextManager:
    """Inside, runs draw their pictures and write empty files."""
    return mock.patch.object(common, "_render", _touch)


def rendered() -> AbstractContextManager:
    """Inside, the files are whole, within `blank` too."""
    return mock.patch.object(common, "_render", _render)


def _touch(figure: object, files: Mapping[str, Path]) -> None:
    for file in files.values():
        file.write_bytes(b"")
