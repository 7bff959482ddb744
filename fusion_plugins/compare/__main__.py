"""`python -m fusion_plugins.compare gather|sweep-plot`: from finished cells to tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from .gathering import gather
from .sweep import plot_sweep
from .tables import terminal_tables


def make_parser() -> argparse.ArgumentParser:
    """The command line of both commands."""
    parser = argparse.ArgumentParser(
        prog="python -m fusion_plugins.compare", description=__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True)
    text = "write the tables and the report of a results folder again"
    commands.add_parser("gather", help=text).add_argument("results", help="the folder")
    sweep = commands.add_parser(
        "sweep-plot", help="plot how the average responds to an option"
    )
    sweep.add_argument("results", help="the results folder")
    sweep.add_argument("--x", required=True, metavar="OPTION", help="for example alpha")
    sweep.add_argument("--method", help="only cells of this method")
    sweep.add_argument("--task", help="a task's main metric instead of the average")
    sweep.add_argument("--log", action="store_true", help="logarithmic x axis")
    sweep.add_argument("--out", help="the picture (default: RESULTS/sweep_OPTION.png)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; wrong input ends with exit status 2 and a message."""
    given, console = vars(make_parser().parse_args(arguments)), Console()
    command, folder = given.pop("command"), given.pop("results")
    try:
        if command == "gather":
            console.print(*terminal_tables(gather(folder), console.width))
            console.print(f"Results: {folder}", soft_wrap=True)
        else:
            option, logarithmic = given.pop("x"), given.pop("log")
            path = plot_sweep(folder, option, logarithmic=logarithmic, **given)
            console.print(f"Saved {path}", soft_wrap=True)
    except ValueError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
