"""Black and isort as FusionBench sets them, and the line that says where a file is from."""

from __future__ import annotations

from pathlib import Path

from .errors import ExportError
from .sources import PROJECT

_MARK = f"Source: {PROJECT} "


def header(version: str, commit: str, origin: str) -> str:
    """Says which file of which commit an exported file is made from."""
    return f"{_MARK}{version}, {commit}, {origin}"


def is_exported(path: Path) -> bool:
    """Whether a file was written by an export."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return _MARK in file.readline()


def formatted(source: str) -> str:
    """Sorted and formatted: black's 88 columns, isort's black profile.

    Raises:
        ExportError: Black or isort is not installed.
    """
    try:
        import black
        import isort
    except ModuleNotFoundError as error:
        raise ExportError(
            f"exported files are formatted with {error.name}, which is not installed:"
            f' pip install "{PROJECT}[dev]".'
        ) from error
    # In FusionBench's repository its own package is first party, torch is not.
    settings = isort.Config(profile="black", known_first_party=("fusion_bench",))
    return black.format_str(isort.code(source, config=settings), mode=black.Mode())
