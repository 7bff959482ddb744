"""Parse the command line, run its command, say what went wrong in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from . import cite, compare, completion, convert, demo, doctor, pools
from .parsing import Parser


def make_parser() -> Parser:
    """The parser of all commands; imports no torch."""
    parser = Parser(
        prog="fusion-plugins",
        description="Offline pools, comparisons and conversions for merging models.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for group in (demo, pools, compare, convert, doctor, cite):
        group.add_to(commands)
    completion.add_to(commands, parser)
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
