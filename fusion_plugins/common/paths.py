"""Names and paths of models that users give: checked before anything is looked up on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_LONGEST_PART = 255  # bytes, on usual file systems


def require_path(name: str, value: object) -> str:
    """A path as a string.

    Raises:
        ValueError: `value` is no path, or an empty one.
    """
    if not isinstance(value, (str, os.PathLike)) or not str(value).strip():
        raise ValueError(f"{name} is {value!r}, expected a path.")
    if str(value) == "None":
        raise ValueError(f"{name} is the text 'None'; no path is null, in Python None.")
    if "\0" in str(value):
        raise ValueError(f"{name} is {value!r}: a path has no NUL character.")
    for part in Path(value).parts:
        if len(os.fsencode(part)) > _LONGEST_PART:
            raise ValueError(
                f"{name}: '{part[:40]}...' in its path is longer than {_LONGEST_PART}"
                " bytes, which no file or folder can be named."
            )
    return str(value)


def require_names(names: Iterable[object]) -> None:
    """Raise TypeError unless a pool's `names` of models are text."""
    for name in names:
        if not isinstance(name, str):
            raise TypeError(
                f"The model pool calls a model {name!r}, a {type(name).__name__}; names of"
                f" models are text, such as '{name}'."
            )


def require_paths(option: str, given: Any) -> dict[str, str]:
    """Paths by the names of models, as text.

    Args:
        option: Who gave them, for messages.
        given: Model -> path.

    Raises:
        ValueError: One is no path, or FusionBench would take a part of it for a reference.
    """
    if not isinstance(given, Mapping):
        raise ValueError(
            f"{option} is {given!r}, expected paths by the names of models, such as"
            " {_pretrained_: models/base, mnist: models/mnist}."
        )
    paths = {n: require_path(f"{option}.{n}", path) for n, path in given.items()}
    for name, path in paths.items():
        if "${" in path:
            raise ValueError(
                f"{option}.{name} is {path!r}, in which ${{...}} would mean another value"
                " of the configuration. Rename the folder."
            )
    return paths
