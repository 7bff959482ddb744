"""Which modules a method needs, read from the source without running it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

from .sources import PACKAGE, Sources

# A module named in a string: "module", ".module", "package.module:Name".
_NAMED = re.compile(r"(?P<dots>\.*)(?P<path>[A-Za-z_]\w*(?:\.\w+)*)(?::\w+)?")
_PUBLIC = re.compile(rf"\b{PACKAGE}\.(\w+)")


def module_graph(sources: Sources, roots: Iterable[str]) -> list[str]:
    """Every module that the given ones reach by imports, sorted, roots included.

    Imports inside functions and for type checkers count. So do modules that a file using
    `import_module` names in strings, and public names that a message tells users. The
    package's root module is left out: it only re-exports.
    """
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        module = waiting.pop()
        if module in found or module == PACKAGE:
            continue
        found.add(module)
        waiting.append(module.rpartition(".")[0])  # importing it runs its packages
        waiting += _needed(sources, module)
    return sorted(found)


def _needed(sources: Sources, module: str) -> Iterator[str]:
    tree = sources.tree(module)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if _ours(sources, a.name))
        elif isinstance(node, ast.ImportFrom):
            base = sources.base_of(module, node)
            if base is not None:
                yield base
                yield from (sources.defined_in(base, a.name) for a in node.names)
    by_name = "import_module" in sources.text(module)
    for text in _strings(tree):
        yield from (
            sources.public[n] for n in _PUBLIC.findall(text) if n in sources.public
        )
        if by_name:
            yield from _named(sources, module, text)


def _ours(sources: Sources, name: str) -> bool:
    return name.split(".")[0] == PACKAGE and sources.path(name) is not None


def _strings(tree: ast.Module) -> Iterator[str]:
    """Every string but docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in docstrings:
                yield node.value


def _named(sources: Sources, module: str, text: str) -> Iterator[str]:
    match = _NAMED.fullmatch(text)
    if match is None:
        return
    package = module if sources.is_package(module) else module.rpartition(".")[0]
    parts = package.split(".")
    parts = parts[: len(parts) + 1 - max(len(match["dots"]), 1)]
    for name in (match["path"], ".".join([*parts, match["path"]])):
        if _ours(sources, name) and name != PACKAGE:
            yield name
