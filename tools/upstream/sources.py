"""A source checkout of this project: what a method reaches, and texts for another home."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .methods import ExportError, Method

PACKAGE = "fusion_plugins"
PROJECT = "fusion-plugins"
#: The package in FusionBench that holds the copied rooms, once for all methods.
CORE = "fusion_bench.method.adaptive_merging"

_MARK = f"Source: {PROJECT} "


class Sources:
    """The modules of a checkout.

    Args:
        root: The checkout; the one this file is in by default.

    Raises:
        ExportError: It is not a source checkout.
    """

    def __init__(self, root: Path | None = None):
        self.root = Path(__file__).resolve().parents[2] if root is None else root
        for folder in (PACKAGE, "config/method", "tests"):
            if not (self.root / folder).is_dir():
                raise ExportError(
                    f"{self.root} is not a source checkout of {PROJECT}: it has no"
                    f" {folder}/. Run the export from one."
                )
        init = (self.root / PACKAGE / "__init__.py").read_text(encoding="utf-8")
        (self.version,) = re.findall(r'^__version__ = "(.+)"$', init, re.MULTILINE)

    def modules(self, method: Method) -> list[Path]:
        """Files of every module that a method reaches by imports, sorted."""
        room = self.root / PACKAGE
        waiting = [room / method.name / "algorithm.py"]
        waiting += [room / "pools" / "families" / f"{n}.py" for n in method.families]
        found: set[Path] = set()
        while waiting:
            path = waiting.pop()
            if path in found:
                continue
            found.add(path)
            waiting += [p for p in self._reached(path) if p != room / "__init__.py"]
        return sorted(found)

    def _reached(self, path: Path) -> Iterator[Path]:
        if not path.is_file():
            raise ExportError(f"{path} is missing: is the checkout complete?")
        yield path.parent / "__init__.py"  # importing a module runs its package
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = path.parents[node.level - 1]
                base = base.joinpath(*filter(None, (node.module or "").split(".")))
                for stem in (base, *(base / alias.name for alias in node.names)):
                    files = (stem.with_suffix(".py"), stem / "__init__.py")
                    yield from (file for file in files if file.is_file())

    def header(self, origin: Path) -> str:
        """Says which file of which commit an exported file is made from."""
        source = origin.relative_to(self.root).as_posix()
        return f"{_MARK}{self.version}, {self._commit()}, {source}"

    def _commit(self) -> str:
        revision = self._git("rev-parse", "--short=12", "HEAD")
        if revision is None:
            return "commit unknown"
        changed = self._git("status", "--porcelain", "--", PACKAGE, "config", "tests")
        return f"commit {revision}" + (" with uncommitted changes" if changed else "")

    def _git(self, *arguments: str) -> str | None:
        command = ["git", "-C", str(self.root), *arguments]
        try:
            run = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return run.stdout.strip()


def is_exported(path: Path) -> bool:
    """Whether a file was written by an export."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return _MARK in file.readline()


def moved(text: str, method: Method) -> str:
    """A text in which this package's names are those of the new home.

    Relative imports stay as they are: the rooms are copied side by side.
    """
    public, kind = "fusion_bench.method", method.class_name
    text = text.replace(f"from {PACKAGE} import {kind}", f"from {public} import {kind}")
    text = text.replace(f"{PACKAGE}.{kind}", f"{public}.{kind}")
    text = text.replace(
        f"from {PACKAGE} import TintedModel",
        f"from {CORE}.merged.model import TintedModel",
    )
    text = re.sub(rf"\b{PACKAGE}(?=\.[a-z])", CORE, text)
    text = re.sub(rf"\b{PACKAGE}\.(?=[A-Z])", "", text)  # classes that stay here
    return text.replace(f'"{PROJECT}", ', "")  # in lists of distributions


def mentions(text: str) -> list[str]:
    """Names of this project that are left in a text."""
    return re.findall(rf"{PACKAGE}(?:\.\w+)*|{PROJECT}", text)
