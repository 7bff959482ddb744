"""From a method here to the files that FusionBench wants of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import black
import isort

from .checkout import Checkout
from .configs import MethodConfigs
from .listing import with_export, with_page
from .methods import ExportError, Method
from .sources import CORE, PACKAGE, Sources, is_exported, mentions, moved


@dataclass
class Export:
    """What exporting a method to a checkout does; :meth:`apply` does it.

    Attributes:
        checkout: The FusionBench tree.
        method: What is exported, and its names there.
        sources: This project.
        writes: Path -> content.
        notes: What a person should look at.
    """

    checkout: Checkout
    method: Method
    sources: Sources
    writes: dict[Path, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.configs = MethodConfigs(self.sources, self.method, self.checkout.config)
        self._add_package()
        self._add_configs()
        self._add_page()
        self._add_test()

    @property
    def core(self) -> Path:
        """The folder of the copied rooms."""
        return self.checkout.root.joinpath(*CORE.split("."))

    def _add_package(self) -> None:
        room = self.sources.root / PACKAGE
        for origin in self.sources.modules(self.method):
            text = origin.read_text(encoding="utf-8")
            self._add(self.core / origin.relative_to(room), text, origin)
        name, kind = self.method.name, self.method.class_name
        core = CORE.rpartition(".")[2]
        text = '"""Merging methods that adapt task vectors, and what they share."""\n'
        self._add(self.core / "__init__.py", text, room / "__init__.py")
        text = (
            f'"""{self.method.title}."""\n\n'
            f"from ..{core}.{name}.algorithm import {kind}\n\n__all__ = ['{kind}']\n"
        )
        home = self.core.parent / self.method.home / "__init__.py"
        self._add(home, text, room / name / "__init__.py")

    def _add_configs(self) -> None:
        folder = self.checkout.config / "method" / self.method.home
        for origin, text in self.configs.files():
            self._add(folder / origin.name, text, origin)

    def _add_page(self) -> None:
        if self.checkout.nav is None:
            self.notes.append("no page: an installed release has no mkdocs.yml")
            return
        origin = self.sources.root / "docs" / "algorithms" / f"{self.method.name}.md"
        lines = origin.read_text(encoding="utf-8").splitlines(keepends=True)
        lines = [line for line in lines if not line.startswith("<!--")]
        text = "".join(map(self.configs.command, lines))
        text = re.sub(r"\[([^]]+)\]\([^)]*\.md[^)]*\)", r"\1", text)  # to our own pages
        path = self.checkout.root / "docs" / "algorithms" / f"{self.method.home}.md"
        self._add(path, text, origin)

    def _add_test(self) -> None:
        if self.checkout.tests is None:
            self.notes.append("no test: this installed release has no tests/")
            return
        name = self.method.name
        origin = self.sources.root / "tests" / name / f"test_{name}_algorithm.py"
        text = origin.read_text(encoding="utf-8")
        if "import pytest" in text or "import unittest" not in text:
            raise ExportError(
                f"{origin.name} cannot travel: FusionBench runs its tests with unittest"
                " alone, one file per method."
            )
        self._add(self.checkout.tests / f"test_{self.method.home}.py", text, origin)

    def _add(self, path: Path, text: str, origin: Path) -> None:
        comment = {".md": "<!-- {} -->\n"}.get(path.suffix, "# {}\n")
        text = moved(text, self.method)
        if path.suffix == ".py":
            text = _formatted(text)
        if left := sorted(set(mentions(text))):
            source = origin.relative_to(self.sources.root).as_posix()
            self.notes.append(f"{path.name} (from {source}) still mentions {left}")
        self.writes[path] = comment.format(self.sources.header(origin)) + text

    def clear_the_way(self, force: bool = False) -> list[Path]:
        """Refuse to overwrite what did not come from an export.

        Args:
            force: Replace the files of an earlier export of this method.

        Returns:
            Files of an earlier export that this one no longer has.

        Raises:
            ExportError: Something is in the way.
        """
        present = [path for path in self.writes if path.exists()]
        foreign = [path for path in present if not is_exported(path)]
        if foreign:
            raise ExportError(
                f"{self._shown(foreign)} did not come from an export, so it is never"
                " overwritten. Choose another name with --name, or remove it yourself."
            )
        own = [path for path in present if not path.is_relative_to(self.core)]
        if own and not force:
            raise ExportError(
                f"{self._shown(own)} is there already, from an earlier export."
                " Replace it with --force."
            )
        configs = self.checkout.config / "method" / self.method.home
        old = [path for path in configs.glob("*.yaml") if path not in self.writes]
        return [path for path in old if is_exported(path)]

    def _shown(self, paths: list[Path]) -> str:
        first = sorted(p.relative_to(self.checkout.root).as_posix() for p in paths)
        return first[0] + (f" (and {len(first) - 1} more)" if len(first) > 1 else "")

    def add_to_lists(self) -> None:
        """Name the method where FusionBench names all of them."""
        path, home = self.checkout.exports, self.method.home
        file = path.relative_to(self.checkout.root).as_posix()
        text = path.read_text(encoding="utf-8")
        self.writes[path] = with_export(text, home, self.method.class_name, file)
        nav = self.checkout.nav
        if nav is not None:
            page, text = f"algorithms/{home}.md", nav.read_text(encoding="utf-8")
            self.writes[nav] = with_page(text, self.method.title, page, nav.name)

    def apply(self) -> None:
        """Write everything; on an error put back what was there.

        Raises:
            OSError: A file cannot be written.
        """
        before = {p: p.read_bytes() if p.is_file() else None for p in self.writes}
        try:
            for path, content in self.writes.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content, encoding="utf-8")
        except OSError:
            for path, old in before.items():
                if old is not None and path.read_bytes() != old:
                    path.write_bytes(old)
                elif old is None:
                    path.unlink(missing_ok=True)
            raise


def _formatted(source: str) -> str:
    """Sorted and formatted: black's 88 columns, isort's black profile."""
    # In FusionBench's repository its own package is first party, torch is not.
    settings = isort.Config(profile="black", known_first_party=("fusion_bench",))
    return black.format_str(isort.code(source, config=settings), mode=black.Mode())


def export(
    checkout: Checkout, method: Method, sources: Sources, force: bool = False
) -> tuple[Export, list[Path]]:
    """Work out an export, touching nothing, and the files of an earlier one to remove.

    Args:
        checkout: The FusionBench tree.
        method: What to export, and its names there.
        sources: This project.
        force: Replace the files of an earlier export.

    Raises:
        ExportError: Files are in the way, or something cannot be placed.
    """
    planned = Export(checkout, method, sources)
    removals = planned.clear_the_way(force)
    planned.add_to_lists()
    return planned, removals
