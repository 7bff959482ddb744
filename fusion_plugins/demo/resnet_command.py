"""`python -m fusion_plugins.demo build-resnet`: a pool of small ResNet experts."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

_NUMBERS = {
    "seed": "seed of built-in images, weights and order",
    "width": "channels of the first stage",
    "pretrain_images": "images per task that pretraining sees",
    "pretrain_steps": "training steps of the pretrained model",
    "expert_steps": "training steps of each expert",
}


def add_build_resnet(commands, names) -> None:
    """Add the command to the demo's parser; `names` parses a list of names."""
    parser = commands.add_parser(
        "build-resnet", help="train small ResNets and print how to use them"
    )
    parser.add_argument(
        "--data",
        help="folder of .npz files as for build; other tasks are the built-in ones",
    )
    parser.add_argument("--out", required=True, help="the new pool's folder")
    parser.add_argument(
        "--tasks",
        type=names,
        help="for example mnist,textures (default: built-in ones)",
    )
    for name, text in _NUMBERS.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, metavar="N", help=text)


def build_resnet_command(options: argparse.Namespace, console: Console) -> None:
    """Build the pool the options ask for and say how to use it."""
    from .measure import make_table
    from .recipe import DemoInputError
    from .resnet_build import build_resnet_pool
    from .resnet_pools import read_resnet_description
    from .resnet_recipe import ResNetRecipe

    root = Path(options.out).absolute()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DemoInputError(f"{root} exists and is not empty; choose another folder")
    given = {name: getattr(options, name) for name in (*_NUMBERS, "tasks")}
    given = {name: value for name, value in given.items() if value is not None}
    build_resnet_pool(ResNetRecipe(**given), root, options.data)
    description = read_resnet_description(root)
    title = f"Accuracy in percent, built in {description['build_seconds']} s"
    console.print(make_table(description["accuracy"], title))
    console.print(f"The pool is in {root}. Use it:", soft_wrap=True)
    console.print(
        "  fusion_bench method=tinting_pp modelpool=demo-resnet"
        f" modelpool.root={root} taskpool=demo-resnet taskpool.root={root}",
        soft_wrap=True,
    )
