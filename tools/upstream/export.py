"""From a method here to the files that FusionBench wants of it."""

from __future__ import annotations

import re
from pathlib import Path

from .listing import with_export, with_page
from .methods import METHODS, ExportError, Method
from .modules import PACKAGE, ROOT, travelling
from .moving import (
    CORE,
    configs,
    formatted,
    moved,
    moved_config,
    moved_module,
    moved_page,
    place_of,
)

_LISTS = ("fusion_bench/method/__init__.py", "mkdocs.yml")
_PARTS = (*_LISTS, "config/method", "docs/algorithms", "tests")
_SHARED = (f"fusion_bench/method/{CORE}/", f"config/method/{CORE}/")


def export(checkout: Path, method: Method, force: bool = False) -> dict[Path, str]:
    """Work out an export, touching nothing.

    Args:
        checkout: A FusionBench checkout.
        method: What to export; the methods that it builds on come along.
        force: Replace a method's files that are there already.

    Returns:
        Path -> content of every file that changes.

    Raises:
        ExportError: Not a checkout, files are in the way, or one cannot travel.
    """
    missing = [part for part in _PARTS if not (checkout / part).exists()]
    if missing:
        raise ExportError(
            f"{checkout} is not a FusionBench checkout: it has no {missing[0]}. Give the"
            " folder that holds `fusion_bench/`."
        )
    modules = travelling(method)
    methods = [
        m for m in METHODS.values() if PACKAGE / m.name / "algorithm.py" in modules
    ]
    writes = _package(checkout, modules)
    for each in methods:
        writes |= _configs(each) | _page_and_test(each)
    _check(writes)
    writes |= _lists(checkout, methods)
    return _changes(checkout, writes, force)


def _package(checkout: Path, modules: list[Path]) -> dict[str, str]:
    # What an earlier export of another method brought stays a part of the core.
    folder = checkout / "fusion_bench" / "method"
    present = {p for p in PACKAGE.rglob("*.py") if (folder / place_of(p)).is_file()}
    texts = {
        place_of(path): moved_module(path, {*modules, *present}) for path in modules
    }
    about = '"""What several merging methods share: task vectors, pools, checks."""\n'
    texts[Path(CORE, "__init__.py")] = about
    return {f"fusion_bench/method/{p.as_posix()}": t for p, t in texts.items()}


def _configs(method: Method) -> dict[str, str]:
    folder = ROOT / "config" / "method"
    chosen = [f"{n}.yaml" for n, owner in configs().items() if owner == method.name]
    texts = {f"{method.home}/{n}": moved_config(folder / n) for n in chosen}
    for name in re.findall(rf"- /method/{CORE}/(\w+)@", "".join(texts.values())):
        part = folder / "fusion_plugins" / f"{name}.yaml"
        texts[f"{CORE}/{part.name}"] = moved_config(part)
    return {f"config/method/{name}": text for name, text in texts.items()}


def _page_and_test(method: Method) -> dict[str, str]:
    page = ROOT / "docs" / "algorithms" / f"{method.name}.md"
    test = ROOT / "tests" / method.name / f"test_{method.name}_algorithm.py"
    text = formatted(moved(test.read_text(encoding="utf-8")))
    return {
        f"docs/algorithms/{method.home}.md": moved_page(
            page, method.home, method.class_name
        ),
        f"tests/test_{method.home}.py": text,
    }


def _lists(checkout: Path, methods: list[Method]) -> dict[str, str]:
    names, nav = ((checkout / part).read_text(encoding="utf-8") for part in _LISTS)
    for method in methods:
        names, nav = with_export(names, method), with_page(nav, method)
    return dict(zip(_LISTS, (names, nav), strict=True))


def _check(writes: dict[str, str]) -> None:
    for path, text in writes.items():
        if left := re.search(r"fusion[-_ ]plugins", text, re.IGNORECASE):
            before, after = text[: left.end()], text[left.end() :]
            line = before.rpartition("\n")[2] + after.partition("\n")[0]
            raise ExportError(
                f"{path} would still speak of this project: '{line.strip()}'. Say it"
                " there without the name, or mark it as only here."
            )


def _changes(checkout: Path, writes: dict[str, str], force: bool) -> dict[Path, str]:
    present = {
        p: (checkout / p).read_text("utf-8") for p in writes if (checkout / p).exists()
    }
    changed = {path: text for path, text in writes.items() if present.get(path) != text}
    own = [p for p in changed if p in present and not p.startswith((*_SHARED, *_LISTS))]
    if own and not force:
        raise ExportError(
            f"{own[0]} is there already and differs. Replace it with --force, or take"
            " another home for the method in tools/upstream/methods.py."
        )
    return {checkout / path: text for path, text in changed.items()}
