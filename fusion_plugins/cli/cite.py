"""``fusion-plugins cite``: BibTeX of the papers and of this software."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any


def add_to(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser("cite", help="BibTeX of the papers and this software")
    parser.set_defaults(run=_print)


def _print(options: Namespace) -> None:
    file = Path(__file__).with_name("citations.bib")
    sys.stdout.write(file.read_text(encoding="utf-8"))
