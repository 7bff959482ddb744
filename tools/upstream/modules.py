"""Which modules travel with a method, read from its imports."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from .methods import METHODS, Method

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fusion_plugins"


def travelling(method: Method) -> list[Path]:
    """Files of every module that a method reaches by imports, sorted.

    Imports inside functions and for type checkers count. A method whose room is reached
    travels as a method.
    """
    waiting = [PACKAGE / method.name / "algorithm.py"]
    waiting += [PACKAGE / path for path in method.also]
    found = {PACKAGE / "__init__.py"}  # which has names for users only
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        waiting += _reached(path)
        room = room_of(path)
        if room in METHODS:
            waiting.append(PACKAGE / room / "algorithm.py")
    return sorted(found - {PACKAGE / "__init__.py"})


def room_of(path: Path) -> str:
    """The room of a module of this package."""
    return path.relative_to(PACKAGE).parts[0]


@cache  # methods share most modules
def _reached(path: Path) -> list[Path]:
    found = [path.parent / "__init__.py"]  # importing a module runs its package
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            found += files_of(path, "." * node.level + (node.module or ""))
            for alias in node.names:
                inner = f"{node.module}.{alias.name}" if node.module else alias.name
                found += files_of(path, "." * node.level + inner)
    return found


def files_of(path: Path, name: str) -> list[Path]:
    """The file of a module named relative to the one at `path`; none for other names."""
    bare = name.lstrip(".")
    stem = path.parents[len(name) - len(bare) - 1].joinpath(*bare.split("."))
    return [f for f in (stem / "__init__.py", stem.with_suffix(".py")) if f.is_file()]
