"""``fusion-plugins compare``: tables and plots of finished comparisons."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from .parsing import path


def add_to(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser("compare", help="tables and plots of comparisons")
    kinds = parser.add_subparsers(dest="action", required=True)
    gathering = kinds.add_parser("gather", help="write tables and report again")
    gathering.add_argument("results", type=path, help="the results folder")
    gathering.set_defaults(run=_gather)
    sweep = kinds.add_parser("sweep-plot", help="plot results against an option")
    sweep.add_argument("results", type=path, help="the results folder")
    sweep.add_argument("--x", required=True, metavar="OPTION", help="for example alpha")
    sweep.add_argument("--method", help="only cells of this method")
    sweep.add_argument("--task", help="a task's main metric instead of the average")
    sweep.add_argument("--log", action="store_true", help="logarithmic x axis")
    sweep.add_argument("--out", type=path, help="(default: RESULTS/sweep_OPTION.png)")
    sweep.set_defaults(run=_plot)


def _gather(options: Namespace) -> None:
    from rich.console import Console

    from ..compare.gathering import gather
    from ..compare.tables import terminal_tables

    console = Console()
    console.print(*terminal_tables(gather(options.results), console.width))
    console.print(f"Results: {options.results}", soft_wrap=True)


def _plot(options: Namespace) -> None:
    from rich.console import Console

    from ..compare.sweep import plot_sweep

    picture = plot_sweep(
        options.results,
        options.x,
        method=options.method,
        task=options.task,
        logarithmic=options.log,
        out=options.out,
    )
    Console().print(f"Saved {picture}", soft_wrap=True)
