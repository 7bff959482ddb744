"""`python -m tools.upstream CHECKOUT --method awd`: hand a method to FusionBench."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from .export import export
from .methods import METHODS, ExportError


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.upstream",
        description="Lay a method out as files of a FusionBench checkout.",
    )
    parser.add_argument(
        "checkout", type=Path, help="the folder that holds `fusion_bench/`"
    )
    parser.add_argument("--method", required=True, choices=sorted(METHODS))
    parser.add_argument(
        "--dry-run", action="store_true", help="list the files, write nothing"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace the method's files there"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Export; an export that cannot be made ends with exit status 2 and a message."""
    options = make_parser().parse_args(arguments)
    checkout = options.checkout.resolve()
    try:
        writes = export(checkout, METHODS[options.method], options.force)
        for path, text in () if options.dry_run else writes.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except (ExportError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        return 2
    verb = "would write" if options.dry_run else "wrote"
    for name in sorted(path.relative_to(checkout).as_posix() for path in writes):
        Console().print(f"{verb} {name}", markup=False, soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
