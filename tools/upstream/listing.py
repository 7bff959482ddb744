"""One more entry in the lists FusionBench keeps of its methods and of its pages."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from .methods import ExportError

_NEIGHBOUR = "task_arithmetic"  # the merging methods stand around it
_SECTION = "Model Merging"


def with_export(source: str, home: str, class_name: str, file: str) -> str:
    """`fusion_bench/method/__init__.py` with the class in both of its lists.

    Args:
        source: Its text.
        home: The method's package; what was listed for it is replaced.
        class_name: The class to list.
        file: The file's name, for messages.

    Raises:
        ExportError: A list is not where FusionBench 0.2 keeps it.
    """
    entries = _import_structure(source, file)
    imports = _typed_imports(source, file)
    if _is_listed(entries, imports, home, class_name):
        return source
    lines = _without(source.splitlines(), entries, imports, home)
    at = _entry_line(_import_structure("\n".join(lines), file))
    lines.insert(at, f'    "{home}": ["{class_name}"],')
    at = _import_line(_typed_imports("\n".join(lines), file), home)
    lines.insert(at, f"    from .{home} import {class_name}")
    return "\n".join(lines) + "\n"


def _import_structure(source: str, file: str) -> ast.Dict:
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            if getattr(node.targets[0], "id", None) == "_import_structure":
                return node.value
    raise ExportError(
        f"{file} has no `_import_structure = {{...}}`, the dict that FusionBench 0.2 lists"
        " its methods in. List the class there by hand, or export to a known release."
    )


def _typed_imports(source: str, file: str) -> list[ast.ImportFrom]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            imports = [
                n for n in node.body if isinstance(n, ast.ImportFrom) and n.module
            ]
            if imports:
                return imports
    raise ExportError(
        f"{file} has no `if TYPE_CHECKING:` block of imports, where FusionBench 0.2 repeats"
        " its methods. List the class there by hand, or export to a known release."
    )


def _is_listed(
    entries: ast.Dict, imports: Sequence[ast.ImportFrom], home: str, class_name: str
) -> bool:
    listed = [ast.literal_eval(v) for k, v in _pairs(entries) if _name(k) == home]
    typed = [[a.name for a in n.names] for n in imports if n.module == home]
    return listed == typed == [[class_name]]


def _without(
    lines: list[str], entries: ast.Dict, imports: Sequence[ast.ImportFrom], home: str
) -> list[str]:
    spans = [(k.lineno, v.end_lineno) for k, v in _pairs(entries) if _name(k) == home]
    spans += [(n.lineno, n.end_lineno) for n in imports if n.module == home]
    gone = {line for first, last in spans for line in range(first, last + 1)}
    return [line for number, line in enumerate(lines, 1) if number not in gone]


def _entry_line(entries: ast.Dict) -> int:
    """Lines before the new entry: after the neighbour, else after the last one."""
    ends = {_name(key): value.end_lineno for key, value in _pairs(entries)}
    return ends.get(_NEIGHBOUR, max(ends.values(), default=entries.lineno))


def _pairs(entries: ast.Dict):
    return zip(entries.keys, entries.values, strict=True)


def _name(key: ast.expr | None):
    return getattr(key, "value", None)


def _import_line(imports: Sequence[ast.ImportFrom], home: str) -> int:
    later = [node.lineno - 1 for node in imports if node.module > home]
    return later[0] if later else imports[-1].end_lineno


def with_page(nav: str, title: str, page: str, file: str) -> str:
    """`mkdocs.yml` with a page at the end of the section on merging.

    Raises:
        ExportError: There is no such section.
    """
    lines = nav.splitlines()
    if f"- {title}: {page}" in (line.strip() for line in lines):
        return nav
    entry = re.compile(rf"\s*- (.+: )?{re.escape(page)}\s*")
    lines = [line for line in lines if not entry.fullmatch(line)]
    start = next((i for i, line in enumerate(lines) if _is_section(line)), None)
    if start is None:
        raise ExportError(
            f"{file} has no section `- {_SECTION}:` in its navigation. Add the page"
            f" {page} by hand, or export to a known release."
        )
    depth, last = _indent(lines[start]), start
    for number in range(start + 1, len(lines)):
        if lines[number].strip() and _indent(lines[number]) <= depth:
            break
        if lines[number].strip():
            last = number
    indent = _indent(lines[start + 1]) if last > start else depth + 4
    lines.insert(last + 1, f"{' ' * indent}- {title}: {page}")
    return "\n".join(lines) + "\n"


def _is_section(line: str) -> bool:
    return line.strip() == f"- {_SECTION}:"


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
