"""``fusion-plugins convert``: OpenCLIP checkpoints to safetensors."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from .parsing import path


def add_to(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser(
        "convert", help="OpenCLIP encoders and heads to safetensors"
    )
    parser.add_argument(
        "source", metavar="IN", type=path, help="a .pt file, or a folder of them"
    )
    parser.add_argument(
        "target",
        metavar="OUT",
        type=path,
        nargs="?",
        help="the .safetensors file (default: beside each IN, where the pools find it)",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="architecture, such as ViT-B-32; a pickled module tells it itself",
    )
    parser.add_argument(
        "--trust-pickle",
        action="store_true",
        help="also read pickles of whole modules; only if you trust their source",
    )
    parser.set_defaults(run=_convert)


def _convert(options: Namespace) -> None:
    from rich.console import Console

    from ..modelpool.openclip.checkpoints import convert_checkpoint

    console = Console(soft_wrap=True, markup=False)
    for source, target in _jobs(options.source, options.target):
        kind = convert_checkpoint(source, target, options.model, options.trust_pickle)
        console.print(f"Wrote the {kind} {target}")


def _jobs(source: Path, target: Path | None) -> list[tuple[Path, Path]]:
    if not source.is_dir():
        return [(source, target or source.with_suffix(".safetensors"))]
    if target is not None:
        raise ValueError("IN is a folder, whose files are converted beside: drop OUT.")
    files = sorted(source.rglob("*.pt"))
    if not files:
        raise ValueError(f"There is no .pt file in {source}.")
    pairs = [(file, file.with_suffix(".safetensors")) for file in files]
    return [(file, target) for file, target in pairs if not target.exists()]
