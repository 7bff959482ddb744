"""`python -m fusion_plugins.modelpool.openclip convert IN OUT`: checkpoints to safetensors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fusion_plugins.modelpool.openclip", description=__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser(
        "convert", help="write an encoder or a classification head as safetensors"
    )
    convert.add_argument("source", metavar="IN", help="a .pt file, or a folder of them")
    convert.add_argument(
        "target",
        metavar="OUT",
        nargs="?",
        help="the .safetensors file (default: beside each IN, where the pools find it)",
    )
    convert.add_argument(
        "--model",
        metavar="NAME",
        help="architecture, such as ViT-B-32; a pickled module tells it itself",
    )
    convert.add_argument(
        "--trust-pickle",
        action="store_true",
        help="also read pickles of whole modules; only if you trust their source",
    )
    return parser


def _jobs(options: argparse.Namespace) -> list[tuple[Path, Path]]:
    source = Path(options.source)
    if not source.is_dir():
        target = options.target or source.with_suffix(".safetensors")
        return [(source, Path(target))]
    if options.target is not None:
        raise ValueError("IN is a folder, whose files are converted beside: drop OUT.")
    files = sorted(source.rglob("*.pt"))
    if not files:
        raise ValueError(f"There is no .pt file in {source}.")
    pairs = [(file, file.with_suffix(".safetensors")) for file in files]
    return [(file, target) for file, target in pairs if not target.exists()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; wrong input ends with exit status 2 and a message."""
    options = make_parser().parse_args(arguments)
    from .convert import convert_checkpoint

    console = Console(soft_wrap=True)
    try:
        for source, target in _jobs(options):
            kind = convert_checkpoint(
                source, target, options.model, options.trust_pickle
            )
            console.print(f"Wrote the {kind} {target}", markup=False)
    except ValueError as error:
        errors = Console(stderr=True, soft_wrap=True)
        errors.print(f"error: {error}", markup=False)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
