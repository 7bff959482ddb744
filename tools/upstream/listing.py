"""One more entry in the lists FusionBench keeps of its methods and of its pages."""

from __future__ import annotations

import re

from .methods import ExportError, Method

_NEIGHBOUR = "task_arithmetic"  # the merging methods stand around it
_SECTION = "- Model Merging:"


def with_export(source: str, method: Method) -> str:
    """`fusion_bench/method/__init__.py` with the class in both of its lists.

    Raises:
        ExportError: A list is not where FusionBench 0.2 keeps it.
    """
    entry = f'    "{method.home}": ["{method.class_name}"],'
    statement = f"    from .{method.home} import {method.class_name}"
    lines = source.splitlines()
    if entry in lines and statement in lines:
        return source
    later = [
        number
        for number, line in enumerate(lines)
        if (match := re.match(r"    from \.(\w+) import", line))
        and match[1] > method.home
    ]
    neighbour = [n for n, x in enumerate(lines) if x.startswith(f'    "{_NEIGHBOUR}":')]
    if not later or not neighbour:
        raise ExportError(
            "fusion_bench/method/__init__.py has no"
            f" {'imports for type checkers' if neighbour else repr(_NEIGHBOUR)} where"
            f" FusionBench 0.2 has it. List {method.class_name} there by hand."
        )
    lines.insert(later[0], statement)
    lines.insert(neighbour[0] + 1, entry)
    return "\n".join(lines) + "\n"


def with_page(nav: str, method: Method) -> str:
    """`mkdocs.yml` with the method's page at the end of the section on merging.

    Raises:
        ExportError: There is no such section.
    """
    entry = f"- {method.title}: algorithms/{method.home}.md"
    if entry in nav:
        return nav
    section = rf"^(?P<indent> *){_SECTION}\n(?:(?P=indent) +.*\n)+"
    match = re.search(section, nav, re.MULTILINE)
    if match is None:
        raise ExportError(
            f"mkdocs.yml has no section `{_SECTION}` in its navigation. Add the page"
            f" algorithms/{method.home}.md by hand."
        )
    return f"{nav[:match.end()]}{match['indent']}    {entry}\n{nav[match.end():]}"
