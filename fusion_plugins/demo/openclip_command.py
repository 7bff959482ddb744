"""`python -m fusion_plugins.demo build-openclip`: the demo pool in open_clip's modules."""

from __future__ import annotations

import argparse
from dataclasses import replace

from rich.console import Console


def add_build_openclip(commands) -> None:
    """Add the command to the demo's parser."""
    parser = commands.add_parser(
        "build-openclip", help="make an OpenCLIP pool and print how to use it"
    )
    parser.add_argument(
        "--from",
        dest="source",
        help="folder of a CLIP demo pool to make it of (default: a small built-in one)",
    )
    parser.add_argument("--out", help="the new pool's folder (default: in the cache)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the built-in pool (default: 0)"
    )


def build_openclip_command(options: argparse.Namespace, console: Console) -> None:
    """Build the pool the options ask for and say how to use it."""
    from .openclip_build import OPENCLIP_RECIPE, ensure_openclip_pool, export_pool
    from .recipe import DemoInputError

    if options.source is not None and options.out is None:
        raise DemoInputError("--from needs --out: the folder for the new pool")
    if options.source is not None:
        root = export_pool(options.source, options.out)
    else:
        recipe = replace(OPENCLIP_RECIPE, seed=options.seed)
        root = ensure_openclip_pool(recipe, options.out)
    built_in = options.out is None and options.seed == 0
    where, there = "", ""
    if not built_in:
        where, there = f" modelpool.root={root}", f" taskpool.root={root}"
    console.print(f"The pool is in {root}. Use it:", soft_wrap=True)
    console.print(
        f"  fusion_bench method=awd modelpool=demo-openclip{where}"
        f" taskpool=demo-openclip{there}",
        soft_wrap=True,
    )
