"""Parse the command line, run its command, say what went wrong in one line."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..common import require
from . import compare, convert, demo, doctor
from .parsing import Parser


def make_parser() -> Parser:
    """The parser of all commands; imports no torch."""
    parser = Parser(
        prog="fusion-plugins",
        description="Offline pools, comparisons and conversions for merging models.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    demo.add_to(commands)
    pools = commands.add_parser("pools", help="names for modelpool= and taskpool=")
    pools.set_defaults(run=_pools)
    compare.add_to(commands)
    convert.add_to(commands)
    doctor.add_to(commands)
    cite = commands.add_parser("cite", help="BibTeX of the papers and this software")
    cite.set_defaults(run=_cite)
    completion = commands.add_parser(
        "completion", help="a script by which your shell completes this command"
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    completion.set_defaults(run=partial(_completion, parser))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Those of the command line; None for the process's own.

    Returns:
        The exit status: the command's own, usually 0; 2 after a user's mistake or a
        failed run, said in one line.
        With ``HYDRA_FULL_ERROR=1`` the error is raised instead.
    """
    options = make_parser().parse_args(arguments)
    try:
        status = options.run(options)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        if os.environ.get("HYDRA_FULL_ERROR", "0") != "0":
            raise
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    return status or 0


def _cite(options: Namespace) -> None:
    file = Path(__file__).with_name("citations.bib")
    sys.stdout.write(file.read_text(encoding="utf-8"))


def _completion(program: Parser, options: Namespace) -> None:
    require("shtab", "Completion")
    import shtab

    sys.stdout.write(shtab.complete(program, options.shell))


def _pools(options: Namespace) -> None:
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
