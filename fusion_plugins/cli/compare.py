"""``fusion-plugins compare``: tables and plots of finished comparisons."""

from __future__ import annotations

from argparse import SUPPRESS, Namespace
from collections.abc import Callable
from typing import Any

from .parsing import names, path

# Options of tables that the command line takes -> how they are read, help.
_TABLES: dict[str, tuple[Callable[[str], Any], str]] = {
    "sort": (str, "column of results.csv, the best row first (default: as listed)"),
    "columns": (names, "for example average,tasks,merge_seconds"),
    "tasks": (names, "only these, with commas between them"),
    "split": (int, "columns of a LaTeX table before it goes on below (default: 12)"),
}


def add_to(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser("compare", help="tables and plots of comparisons")
    kinds = parser.add_subparsers(dest="action", required=True)
    gathering = kinds.add_parser("gather", help="write tables and report again")
    gathering.add_argument("results", type=path, help="the results folder")
    for name, (read, text) in _TABLES.items():
        gathering.add_argument(f"--{name}", type=read, help=text, default=SUPPRESS)
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
    from ..compare.tables import TableOptions
    from ..compare.terminal import terminal_tables

    shown = TableOptions(**{k: v for k, v in vars(options).items() if k in _TABLES})
    console = Console()
    found = gather(options.results, shown)
    console.print(*terminal_tables(found, console.width, shown))
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
