"""`python -m fusion_plugins.demo build-text`: a pool of text experts."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rich.console import Console

from .recipe import DemoInputError

DATA_VARIABLE = "FUSION_PLUGINS_DATA"
_NUMBERS = {
    "seed": (int, "seed of heads, dropout and order"),
    "max_length": (int, "tokens per sentence"),
    "batch_size": (int, "sentences per step"),
    "epochs": (int, "passes over the training sentences"),
    "lr": (float, "peak learning rate"),
    "train_sentences": (int, "at most this many per task"),
}


def add_build_text(commands, names) -> None:
    """Add the command to the demo's parser; `names` parses a list of names."""
    parser = commands.add_parser(
        "build-text",
        help="fine-tune a pretrained encoder on text tasks and print how to use them",
    )
    parser.add_argument(
        "--encoder", required=True, help="folder of a pretrained encoder and tokenizer"
    )
    parser.add_argument(
        "--data",
        help="folder with TASK/train.tsv and TASK/test.tsv, fields label and text"
        f" (default: ${DATA_VARIABLE}/text)",
    )
    parser.add_argument("--out", required=True, help="the new pool's folder")
    parser.add_argument(
        "--tasks", type=names, help="some tasks only, for example cr,mr"
    )
    for name, (kind, text) in _NUMBERS.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, metavar="N", help=text)
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="train in bfloat16, if the CPU is fast at it",
    )


def build_text_command(options: argparse.Namespace, console: Console) -> None:
    """Build the pool the options ask for and say how to use it."""
    from .text_build import build_text_pool, check_free
    from .text_recipe import TextRecipe, read_text_folder

    check_free(Path(options.out).absolute())
    numbers = {name: getattr(options, name) for name in _NUMBERS}
    given = {name: n for name, n in numbers.items() if n is not None}
    recipe = TextRecipe(bfloat16=options.bfloat16, **given)
    tasks = read_text_folder(_data(options.data), options.tasks)
    root = build_text_pool(options.encoder, tasks, options.out, recipe)
    _show(root, console)


def _data(given: str | None) -> Path:
    if given is not None:
        return Path(given)
    if not os.environ.get(DATA_VARIABLE):
        raise DemoInputError(
            f"give --data, or set ${DATA_VARIABLE} to its parent folder"
        )
    return Path(os.environ[DATA_VARIABLE]) / "text"


def _show(root: Path, console: Console) -> None:
    from .measure import make_table
    from .text_pools import read_text_description

    description = read_text_description(root)
    title = f"Accuracy in percent, built in {description['build_seconds']} s"
    console.print(make_table(description["accuracy"], title))
    console.print(f"The pool is in {root}. Use it:", soft_wrap=True)
    console.print(
        "  fusion_bench method=task_arithmetic modelpool=demo-text"
        f" modelpool.root={root} taskpool=demo-text taskpool.root={root}",
        soft_wrap=True,
    )
