"""`python -m tools.upstream CHECKOUT --method awd`: hand a method to FusionBench."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from .checkout import find_checkout
from .export import Export, export
from .methods import METHODS, ExportError, find_method
from .sources import Sources


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.upstream",
        description="Lay a method out as files of a FusionBench checkout.",
    )
    parser.add_argument(
        "checkout", type=Path, help="the folder that holds `fusion_bench/`"
    )
    parser.add_argument(
        "--method", required=True, help=f"one of {', '.join(sorted(METHODS))}"
    )
    parser.add_argument("--name", help="the method's package and folder name there")
    parser.add_argument(
        "--dry-run", action="store_true", help="list the files, write nothing"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace the files of an earlier export"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Export; an export that cannot be made ends with exit status 2 and a message."""
    options = make_parser().parse_args(arguments)
    try:
        method = find_method(options.method, options.name)
        checkout = find_checkout(options.checkout)
        planned, removals = export(checkout, method, Sources(), options.force)
        if not options.dry_run:
            planned.apply()
            for path in removals:
                path.unlink()
    except (ExportError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        return 2
    _show(Console(), planned, removals, options.dry_run)
    return 0


def _show(
    console: Console, planned: Export, removals: list[Path], dry_run: bool
) -> None:
    checkout = planned.checkout
    lines = [
        f"{checkout.layout} at {checkout.root}, configs in {checkout.config.name}/"
    ]
    verb = "would write" if dry_run else "wrote"
    paths = sorted(p.relative_to(checkout.root).as_posix() for p in planned.writes)
    lines += [f"{verb} {path}" for path in paths]
    for path in removals:
        lines.append(f"{'would remove' if dry_run else 'removed'} {path.name}")
    lines += [f"note: {note}" for note in planned.notes]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
