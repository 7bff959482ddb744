"""From a method here to the files that FusionBench wants of it."""

from __future__ import annotations

import ast
from pathlib import Path

from .checkout import Checkout
from .configs import MethodConfigs
from .errors import ExportError
from .formatting import formatted, header, is_exported
from .graph import module_graph
from .listing import with_export, with_page
from .methods import Method
from .plan import Plan
from .rewriting import Names, mentions, rewritten, without_own_distribution
from .sources import PACKAGE, Sources


def plan_export(
    checkout: Checkout, method: Method, sources: Sources, force: bool = False
) -> Plan:
    """What exporting a method to a checkout would do; touches nothing.

    Args:
        checkout: The FusionBench tree.
        method: What to export, and its names there.
        sources: This project.
        force: Replace the files of an earlier export.

    Raises:
        ExportError: Files are in the way, or something cannot be placed.
    """
    modules = module_graph(sources, [f"{PACKAGE}.{method.name}.algorithm"])
    export = _Export(checkout, Names(sources, method, modules))
    export.add_package()
    export.add_configs()
    export.add_page()
    export.add_test()
    export.clear_the_way(force)
    export.add_to_lists()
    return export.plan


class _Export:
    """Fills a plan, one kind of file at a time."""

    def __init__(self, checkout: Checkout, names: Names):
        self.checkout, self.names, self.plan = checkout, names, Plan()
        self.sources, self.method = names.sources, names.method
        self.commit = self.sources.commit()

    def add_package(self) -> None:
        for module in sorted(self.names.modules):
            text = rewritten(self.names, module, self.sources.text(module))
            if module == self.names.own:
                text += f"\nfrom .algorithm import {self.method.class_name}\n"
            self._add_python(self._place(module), text, self.sources.path(module))
        text = core_root(self.names)
        self._add_python(self._place(PACKAGE), text, self.sources.path(PACKAGE))

    def _place(self, module: str) -> Path:
        stem = self.checkout.root.joinpath(*self.names.new(module).split("."))
        package = self.sources.is_package(module)
        return stem / "__init__.py" if package else stem.with_suffix(".py")

    def add_configs(self) -> None:
        for name, text in MethodConfigs(self.names, self.checkout.config).files():
            folder = self.checkout.config / "method" / self.method.home
            origin = self.sources.root / "config" / "method" / name
            self._add(folder / origin.name, text, origin, "# {}\n")

    def add_page(self) -> None:
        if self.checkout.nav is None:
            self.plan.notes.append("no page: an installed release has no mkdocs.yml")
            return
        pages = self.sources.root / PACKAGE / "upstream" / "pages"
        origin = pages / f"{self.method.name}.md"
        text = origin.read_text(encoding="utf-8").replace("{{home}}", self.method.home)
        path = self.checkout.root / "docs" / "algorithms" / f"{self.method.home}.md"
        self._add(path, text, origin, "<!-- {} -->\n")

    def add_test(self) -> None:
        if self.checkout.tests is None:
            self.plan.notes.append("no test: this installed release has no tests/")
            return
        name = f"test_{self.method.name}_algorithm"
        origin = self.sources.root / "tests" / self.method.name / f"{name}.py"
        check_travels(origin)
        text = rewritten(self.names, name, origin.read_text(encoding="utf-8"), False)
        path = self.checkout.tests / f"test_{self.method.home}.py"
        self._add_python(path, text, origin)

    def add_to_lists(self) -> None:
        path, home = self.checkout.exports, self.method.home
        file = path.relative_to(self.checkout.root).as_posix()
        text = path.read_text(encoding="utf-8")
        listed = with_export(text, home, self.method.class_name, file)
        self.plan.writes[path] = listed
        nav = self.checkout.nav
        if nav is not None:
            page, text = f"algorithms/{home}.md", nav.read_text(encoding="utf-8")
            self.plan.writes[nav] = with_page(text, self.method.title, page, nav.name)

    def clear_the_way(self, force: bool) -> None:
        """Refuse to overwrite; find what an earlier export had in excess."""
        present = [path for path in self.plan.writes if path.exists()]
        foreign = [path for path in present if not is_exported(path)]
        if foreign:
            raise ExportError(
                f"{self._shown(foreign)} did not come from an export, so it is never"
                " overwritten. Choose another name with --name, or remove it yourself."
            )
        if present and not force:
            raise ExportError(
                f"{self._shown(present)} is there already, from an earlier export."
                " Replace it with --force."
            )
        package = self._place(self.names.own).parent
        configs = self.checkout.config / "method" / self.method.home
        old = [*sorted(package.rglob("*.py")), *sorted(configs.glob("*.yaml"))]
        old = [path for path in old if path not in self.plan.writes]
        self.plan.removals = [path for path in old if is_exported(path)]

    def _shown(self, paths: list[Path]) -> str:
        first = sorted(p.relative_to(self.checkout.root).as_posix() for p in paths)
        return first[0] + (f" (and {len(first) - 1} more)" if len(first) > 1 else "")

    def _add_python(self, path: Path, text: str, origin: Path) -> None:
        text = formatted(without_own_distribution(text))
        for node in ast.walk(ast.parse(text)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == PACKAGE for name in names):
                raise ExportError(
                    f"{origin.name} would still depend on {PACKAGE}:"
                    f" `{ast.unparse(node)}`. Import a module that the method uses."
                )
        self._add(path, text, origin, "# {}\n")

    def _add(self, path: Path, text: str, origin: Path, comment: str) -> None:
        source = origin.relative_to(self.sources.root).as_posix()
        left = sorted(set(mentions(text)))
        if left:
            self.plan.notes.append(f"{path.name} (from {source}) still mentions {left}")
        mark = comment.format(header(self.sources.version, self.commit, source))
        self.plan.writes[path] = mark + text


def core_root(names: Names) -> str:
    """The source of the subpackage's root: the public names that travel, as lazy as here."""
    return (
        f'"""What {names.method.title} is built from; names load on first use."""\n\n'
        "import importlib\n\n"
        f"_EXPORTS = {names.public()!r}\n\n"
        "__all__ = sorted(_EXPORTS)\n\n\n"
        "def __getattr__(name: str):\n"
        "    if name not in _EXPORTS:\n"
        '        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")\n'
        "    return getattr(importlib.import_module(_EXPORTS[name]), name)\n"
    )


def check_travels(path: Path) -> None:
    """Raise unless a test is plain `unittest` and needs no other file of its folder.

    Raises:
        ExportError: It is missing or needs something that FusionBench's tests lack.
    """
    if not path.is_file():
        raise ExportError(f"there is no test to export: {path} is missing.")
    beside = {p.stem for p in path.parent.glob("*.py")}
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    stuck = sorted(imported & (beside | {"pytest"}))
    if stuck or "unittest" not in imported:
        problem = f"imports {stuck}" if stuck else "does not import unittest"
        raise ExportError(
            f"{path.name} cannot travel: it {problem}. FusionBench runs its tests with"
            " unittest alone, one file per method."
        )
