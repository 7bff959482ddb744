"""``fusion-plugins completion``: what lets a shell complete the command."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from functools import partial
from typing import Any

from ..common import require

_SHELLS = ("bash", "zsh", "tcsh")


def add_to(commands: Any, program: ArgumentParser) -> None:
    """Add the command to the program's parser, which it completes."""
    parser = commands.add_parser(
        "completion", help="a script by which your shell completes this command"
    )
    parser.add_argument("shell", choices=_SHELLS)
    parser.set_defaults(run=partial(_print, program))


def _print(program: ArgumentParser, options: Namespace) -> None:
    require("shtab", "Completion")
    import shtab

    sys.stdout.write(shtab.complete(program, options.shell))
