"""Source code with this package's names replaced by those of its new home."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator

from .errors import ExportError
from .methods import Method
from .sources import PACKAGE, PROJECT, Sources

CORE = "_core"  # the subpackage of what the method shares with others
_TOKEN = re.compile(rf"(?<![\w/-]){PACKAGE}((?:\.\w+)*)(?![\w/-])")


class Names:
    """Old names -> new names, for one method.

    Args:
        sources: Where public names are known.
        method: Its package moves to the home, everything else to a subpackage there.
        modules: The modules that are copied.
    """

    def __init__(self, sources: Sources, method: Method, modules: Collection[str]):
        self.sources, self.method, self.modules = sources, method, frozenset(modules)
        self.own = f"{PACKAGE}.{method.name}"
        self.home = f"fusion_bench.method.{method.home}"

    def new(self, module: str) -> str:
        """The new name of a module of ours; PACKAGE itself becomes the subpackage."""
        if module == self.own or module.startswith(self.own + "."):
            return self.home + module[len(self.own) :]
        return f"{self.home}.{CORE}" + module[len(PACKAGE) :]

    def copied(self, module: str) -> bool:
        return module == PACKAGE or module in self.modules

    def public(self) -> dict[str, str]:
        """Public names that travel -> the new names of their modules."""
        return {
            name: self.new(module)
            for name, module in self.sources.public.items()
            if module in self.modules
        }

    def token(self, dotted: str) -> str | None:
        """A dotted name in code, a message or a config; None if it does not travel."""
        parts = dotted.split(".")
        for end in range(len(parts), 1, -1):
            if ".".join(parts[:end]) in self.modules:
                return ".".join([self.new(".".join(parts[:end])), *parts[end:]])
        if len(parts) > 1 and parts[1] == self.method.class_name:
            return ".".join(["fusion_bench.method", *parts[1:]])
        if len(parts) > 1 and parts[1] not in self.public():
            return None
        return ".".join([self.new(PACKAGE), *parts[1:]])

    def text(self, text: str) -> str:
        """Any text with every mention replaced that has a new name."""
        return _TOKEN.sub(lambda m: self.token(m[0]) or m[0], text)


def mentions(text: str) -> list[str]:
    """Names of this package, and of its distribution, that are left in a text."""
    quoted = re.findall(rf"[\"']({PROJECT})[\"']", text)
    return [match[0] for match in _TOKEN.finditer(text)] + quoted


def rewritten(names: Names, module: str, text: str, is_copied: bool = True) -> str:
    """The source of `module`, importing from the new home.

    Args:
        names: Old to new.
        module: Its old name; for a test, any name in no package.
        text: Its source.
        is_copied: Whether it moves with its package; a test does not.

    Raises:
        ExportError: It imports something of this package that is not copied.
    """
    lines = text.splitlines(keepends=True)
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)]
    for node in sorted(nodes, key=lambda n: n.lineno, reverse=True):
        statements = _new_imports(names, module, node, is_copied)
        if statements is not None:
            indent = " " * node.col_offset
            new = [f"{indent}{statement}\n" for statement in statements]
            lines[node.lineno - 1 : node.end_lineno] = new
    return names.text("".join(lines))


def _new_imports(
    names: Names, module: str, node: ast.ImportFrom, is_copied: bool
) -> list[str] | None:
    """Statements in place of a `from ... import`; None where it may stay."""
    base = names.sources.base_of(module, node)
    if base is None:
        return None
    _require_copied(names, module, node, base)
    found = [_new_import(names, base, a, is_copied) for a in node.names]
    homes = {home for home, *_ in found}
    renamed = any(name != a.name for (_, name, _), a in zip(found, node.names))
    if node.level:
        stays = {_relative_base(names, module, node)}
    else:
        # Only the dotted name changes, which is done for all text at once.
        stays = {names.new(base)} if base != PACKAGE else set()
    if homes == stays and not renamed:
        return None
    return list(_grouped(found))


def _require_copied(names: Names, module: str, node: ast.ImportFrom, base: str):
    for alias in node.names:
        target = names.sources.defined_in(base, alias.name)
        if not names.copied(target) or target == PACKAGE:
            raise ExportError(
                f"{module} line {node.lineno} imports {base}.{alias.name}, which the"
                f" method '{names.method.name}' itself does not need. Import it from a"
                " module that the method uses."
            )


def _new_import(
    names: Names, base: str, alias: ast.alias, is_copied: bool
) -> tuple[str, str, str | None]:
    """Module, name there, and the name it gets."""
    target = names.sources.defined_in(base, alias.name)
    if target == f"{base}.{alias.name}":  # a submodule
        home, _, name = names.new(target).rpartition(".")
        changed = alias.name if name != alias.name else None
        return home, name, alias.asname or changed
    if not is_copied and alias.name == names.method.class_name:
        return "fusion_bench.method", alias.name, alias.asname  # proves it is exported
    return names.new(target), alias.name, alias.asname


def _relative_base(names: Names, module: str, node: ast.ImportFrom) -> str:
    """What an unchanged relative import would import from at the new place."""
    new = names.new(module)
    package = new if names.sources.is_package(module) else new.rpartition(".")[0]
    parts = package.split(".")
    parts = parts[: len(parts) + 1 - node.level]
    return ".".join([*parts, *filter(None, [node.module])])


def _grouped(found: list[tuple[str, str, str | None]]) -> Iterator[str]:
    for home in dict.fromkeys(home for home, *_ in found):
        items = [
            name if asname is None else f"{name} as {asname}"
            for place, name, asname in found
            if place == home
        ]
        yield f"from {home} import ({', '.join(items)})"


def without_own_distribution(text: str) -> str:
    """Drop this project from lists of distributions, such as a model card's."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Tuple, ast.List)):
            kept = [e for e in node.elts if getattr(e, "value", None) != PROJECT]
            if len(kept) < len(node.elts):
                old = ast.get_source_segment(text, node)
                node.elts = kept
                return without_own_distribution(text.replace(old, ast.unparse(node), 1))
    return text
