"""``fusion-plugins completion``: what lets a shell complete the command."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

from ..common import require

_SHELLS = ("bash", "zsh", "tcsh")


def add_to(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser(
        "completion", help="a script by which your shell completes this command"
    )
    parser.add_argument("shell", choices=_SHELLS)
    parser.set_defaults(run=_print)


def _print(options: Namespace) -> None:
    require("shtab", "Completion")
    import shtab

    from .program import make_parser

    sys.stdout.write(shtab.complete(make_parser(), options.shell))
