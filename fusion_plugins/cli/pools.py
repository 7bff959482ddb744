"""``fusion-plugins pools``: what modelpool= takes."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any


def add_to(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser("pools", help="names for modelpool= and taskpool=")
    parser.set_defaults(run=_list)


def _list(options: Namespace) -> None:
    package = Path(__file__).resolve().parents[1]
    # A wheel carries the configs inside the package, a checkout beside it.
    places = (package / "config", package.parent / "config")
    folder = next(place for place in places if place.is_dir()) / "modelpool"
    files = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    width = max(map(len, files))
    for name, file in files.items():
        sys.stdout.write(f"{name:<{width}}  {_headline(file)}\n")


def _headline(file: Path) -> str:
    """The first sentence of the comment that a config starts with."""
    lines = file.read_text(encoding="utf-8").splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("# "))
    return " ".join(line[2:] for line in lines[:end]).split(". ")[0].rstrip(".")
