"""Texts of this project as they are in FusionBench: a few names, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache
from pathlib import Path

import black
import isort

from .methods import METHODS
from .modules import PACKAGE, ROOT, files_of, room_of

#: The package in `fusion_bench.method` that holds the copied rooms, once for all methods.
CORE = "adaptive_merging"
HOMES = {method.name: method.home for method in METHODS.values()}

# Pools here -> what FusionBench has, for commands. The offline pool has no counterpart:
# its commands are shown with the smallest pool from the hub.
_POOLS = {
    "modelpool": "CLIPVisionModelPool/clip-vit-base-patch32_TA8",
    "taskpool": "CLIPVisionModelTaskPool/clip-vit-classification_TA8",
}


def place_of(path: Path) -> Path:
    """Where a module goes, below `fusion_bench/method/`."""
    inner, room = path.relative_to(PACKAGE), room_of(path)
    if room in HOMES:
        return Path(HOMES[room], *inner.parts[1:])
    return CORE / inner


def moved_module(path: Path, travels: Collection[Path]) -> str:
    """A module's text. Of the names that it loads on first use, those that travel stay."""
    text = path.read_text(encoding="utf-8")

    def kept(entry: re.Match[str]) -> str:
        absent = set(files_of(path, entry["module"])) - set(travels)
        return "" if absent else entry[0]

    text = re.sub(r'\s*"\w+": "(?P<module>\.+\w[\w.]*)",?', kept, text)
    inner = path.relative_to(PACKAGE).parts
    if inner[1:] == ("__init__.py",) and inner[0] in METHODS:
        text += f"\nfrom .algorithm import {METHODS[inner[0]].class_name}\n"
    return formatted(moved(_with_imports(text, inner)))


def _with_imports(text: str, inner: tuple[str, ...]) -> str:
    """Imports between a method's room and the rooms of the core; all others stay."""
    here = inner[0]

    def new(statement: re.Match[str]) -> str:
        dots, room = statement["dots"], statement["room"]
        if len(dots) != len(inner):  # stays within its room
            return statement[0]
        if (here in HOMES) and (room not in HOMES):
            return f"from {dots}{CORE}.{room}"
        inwards = here in HOMES or room not in HOMES
        return f"from {dots}{'' if inwards else '.'}{HOMES.get(room, room)}"

    return re.sub(r"\bfrom (?P<dots>\.\.+)(?P<room>\w+)", new, text)


@cache  # methods share most modules
def formatted(source: str) -> str:
    """Sorted and formatted as FusionBench does: black, and isort's black profile."""
    # In FusionBench's repository its own package is first party, torch is not.
    settings = isort.Config(profile="black", known_first_party=("fusion_bench",))
    return black.format_str(isort.code(source, config=settings), mode=black.Mode())


def moved(text: str) -> str:
    """Any text, with this package's names and its commands as they are there."""
    text = re.sub(
        r"from fusion_plugins import (\w+)$",
        lambda m: f"from {_public()[m[1]]} import {m[1]}",
        text,
        flags=re.MULTILINE,
    )
    text = re.sub(r"\bfusion_plugins\.(\w+)", lambda m: _name(m[1]), text)
    text = re.sub(r"\bmethod=(\w+)", lambda m: f"method={choice(m[1])}", text)
    text = re.sub(
        r"\b(modelpool|taskpool)=(?:demo|clip-vit-b32_TA8)\b",
        lambda m: f"{m[1]}={_POOLS[m[1]]}",
        text,
    )
    text = text.replace("'fusion-plugins[{EXTRAS[module]}]'", "{module}")
    return text.replace('"fusion-plugins", ', "")  # in lists of distributions


@cache
def _public() -> dict[str, str]:
    """Public name -> the module there that users import it from."""
    table = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    names = dict(re.findall(r'"(\w+)": "\.([\w.]+)"', table))
    classes = {method.class_name for method in METHODS.values()}
    return {
        name: f"fusion_bench.method{'' if name in classes else f'.{CORE}.{module}'}"
        for name, module in names.items()
    }


def _name(first: str) -> str:
    """The new name of `fusion_plugins.<first>`: a room or a public name."""
    if first in _public():
        return f"{_public()[first]}.{first}"
    return f"fusion_bench.method.{HOMES.get(first, f'{CORE}.{first}')}"


@cache
def configs() -> dict[str, str]:
    """Every config that selects an exported method -> the method's name."""
    classes = {method.class_name: method.name for method in METHODS.values()}
    texts = {
        path.stem: path.read_text(encoding="utf-8")
        for path in sorted((ROOT / "config" / "method").glob("*.yaml"))
    }

    def target(name: str) -> str:
        own = re.search(r"^_target_: fusion_plugins\.(.+)$", texts[name], re.M)
        base = re.search(r"^  - (?!_self_)(\w+)$", texts[name], re.M)
        return own[1] if own else target(base[1]) if base else ""

    return {n: classes[target(n)] for n in texts if target(n) in classes}


def choice(config: str) -> str:
    """What `method=` takes there for one of our configs; other choices stay."""
    method = configs().get(config)
    return config if method is None else f"{HOMES[method]}/{config}"


def moved_config(path: Path) -> str:
    """A config's text. Its defaults are absolute: a relative one depends on the reader."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"^  - fusion_plugins/", f"  - /method/{CORE}/", text, flags=re.M)
    text = re.sub(
        r"^  - (?!_self_)(\w+)$",
        lambda m: f"  - /method/{choice(m[1])}@_here_",
        text,
        flags=re.M,
    )
    return moved(text)


def moved_page(path: Path, home: str, class_name: str) -> str:
    """A page without what its marks say is for this project only."""
    text = path.read_text(encoding="utf-8")
    mark = r"<!-- only here -->.*?<!-- end -->"
    text = re.sub(rf"^{mark}\n+", "", text, flags=re.M | re.S)  # whole paragraphs
    text = re.sub(mark, "", text, flags=re.S)
    text = re.sub(r"^<!-- needs: .*\n", "", text, flags=re.M)
    text = re.sub(r"`(\w+)`", lambda m: f"`{choice(m[1])}`", text)
    for name, there in HOMES.items():
        text = text.replace(f"]({name}.md)", f"]({there}.md)")
    text = re.sub(
        r"^fusion_bench .+",
        lambda m: re.sub(r" (?=\S+=)", " \\\n    ", m[0]),
        moved(text),
        flags=re.M,
    )  # one choice a line, as on FusionBench's pages
    text = f"{text.rstrip()}\n\n## Implementation Details\n\n"
    return f"{text}::: fusion_bench.method.{home}.{class_name}\n"
