"""A source checkout of this project: its modules, public names, version and commit."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

from .errors import ExportError

PACKAGE = "fusion_plugins"
PROJECT = "fusion-plugins"


class Sources:
    """The modules of a checkout, by name.

    Args:
        root: The checkout; that of the running package by default.

    Raises:
        ExportError: It is not a source checkout.
    """

    def __init__(self, root: Path | None = None):
        self.root = Path(__file__).resolve().parents[2] if root is None else root
        for folder in (PACKAGE, "config/method", "tests"):
            if not (self.root / folder).is_dir():
                raise ExportError(
                    f"{self.root} is not a source checkout of {PROJECT}: it has no"
                    f" {folder}/. Run the export from one; an installed package lacks the"
                    " tests."
                )
        self._texts: dict[str, str] = {}  # one state of each file throughout
        init = self.tree(PACKAGE)
        self.public: dict[str, str] = _table(init, "_EXPORTS")  # name -> module
        self.version: str = _table(init, "__version__")

    def path(self, module: str) -> Path | None:
        """The file of a module of this package, or None."""
        stem = self.root.joinpath(*module.split("."))
        package, single = stem / "__init__.py", stem.with_suffix(".py")
        return next((path for path in (package, single) if path.is_file()), None)

    def is_package(self, module: str) -> bool:
        path = self.path(module)
        return path is not None and path.name == "__init__.py"

    def text(self, module: str) -> str:
        if module not in self._texts:
            self._texts[module] = self.path(module).read_text(encoding="utf-8")
        return self._texts[module]

    def tree(self, module: str) -> ast.Module:
        return ast.parse(self.text(module))

    def base_of(self, module: str, node: ast.ImportFrom) -> str | None:
        """What a `from ... import` inside `module` imports from; None if not ours."""
        if node.level == 0:
            base = node.module
        else:
            package = module if self.is_package(module) else module.rpartition(".")[0]
            parts = package.split(".")
            parts = parts[: len(parts) + 1 - node.level]
            base = ".".join([*parts, *filter(None, [node.module])])
        ours = base == PACKAGE or base.startswith(PACKAGE + ".")
        return base if ours else None

    def defined_in(self, base: str, name: str) -> str:
        """The module behind `from base import name`: a submodule or the definer."""
        if self.path(f"{base}.{name}") is not None:
            return f"{base}.{name}"
        return self.public.get(name, base) if base == PACKAGE else base

    def commit(self) -> str:
        """The commit that is checked out, and whether the files still match it."""
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


def _table(tree: ast.Module, name: str):
    for node in tree.body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if any(getattr(target, "id", None) == name for target in targets):
            return ast.literal_eval(node.value)
    raise ExportError(f"{PACKAGE}/__init__.py does not set {name}.")
