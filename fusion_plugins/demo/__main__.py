"""`python -m fusion_plugins.demo build|build-{text,resnet,openclip}|run`: demo pools."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from .openclip_command import add_build_openclip, build_openclip_command
from .recipe import BUILTIN_TASKS, DemoInputError, DemoRecipe
from .resnet_command import add_build_resnet, build_resnet_command
from .text_command import add_build_text, build_text_command

_NUMBERS = {
    "pretrain_images": "images per task that pretraining sees",
    "pretrain_steps": "training steps of the pretrained model",
    "expert_steps": "training steps of each expert",
    "width": "width of the vision tower, a multiple of 4",
    "depth": "layers of the vision tower",
    "seed": "seed of data and training",
}
# Real images are harder than drawn ones, and may have hundreds of classes.
_DATA_DEFAULTS = {"pretrain_images": 2000, "pretrain_steps": 1000, "expert_steps": 800}


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("give names separated by commas")
    return names


def make_parser() -> argparse.ArgumentParser:
    """The command line of both commands."""
    parser = argparse.ArgumentParser(
        prog="python -m fusion_plugins.demo", description=__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build a pool and print how to use it")
    build.add_argument(
        "--data",
        help="folder of .npz files with x_train y_train x_test y_test class_names;"
        " without it the built-in tasks are used",
    )
    build.add_argument("--other", help="such a folder, used only for pretraining")
    build.add_argument("--out", help="the new pool's folder; needed with --data")
    build.add_argument(
        "--tasks",
        type=_names,
        help=f"tasks that get an expert, for example {','.join(BUILTIN_TASKS[:2])}",
    )
    for name, text in _NUMBERS.items():
        default = str(getattr(DemoRecipe, name))
        if name in _DATA_DEFAULTS:
            default += f", with --data {_DATA_DEFAULTS[name]}"
        build.add_argument(
            f"--{name.replace('_', '-')}",
            type=int,
            metavar="N",
            help=f"{text} (default: {default})",
        )
    add_build_text(commands, _names)
    add_build_resnet(commands, _names)
    add_build_openclip(commands)
    run = commands.add_parser("run", help="measure merging methods on a pool")
    run.add_argument("--root", help="a pool's folder (default: the built-in pool)")
    run.add_argument("--seed", type=int, default=0, help="seed of the built-in pool")
    run.add_argument("--methods", type=_names, help="some rows only, for example awd")
    run.add_argument(
        "--out", default="outputs/demo", help="folder for plot and numbers"
    )
    return parser


def _recipe(options: argparse.Namespace, tasks: Sequence[str]) -> DemoRecipe:
    numbers = {name: getattr(options, name) for name in _NUMBERS}
    chosen = {name: n for name, n in numbers.items() if n is not None}
    defaults = _DATA_DEFAULTS if options.data is not None else {}
    return DemoRecipe(tasks=tuple(tasks), **(defaults | chosen))


def _build(options: argparse.Namespace) -> Path:
    """Build the pool the options ask for; returns its folder."""
    from . import build_pool, builtin_tasks, ensure_pool, read_npz_folder

    if options.data is not None and options.out is None:
        raise DemoInputError("--data needs --out: the folder for the new pool")
    size = DemoRecipe.image_size
    other = read_npz_folder(options.other, size) if options.other is not None else []
    if options.data is None:
        recipe = _recipe(options, options.tasks or BUILTIN_TASKS)
        if other and options.out is None:
            raise DemoInputError("--other needs --out: the folder for the new pool")
        if options.out is None:
            return ensure_pool(recipe)
        tasks = builtin_tasks(recipe)
    else:
        tasks = read_npz_folder(options.data, size, options.tasks)
        recipe = _recipe(options, [task.name for task in tasks])
    _refuse_existing(Path(options.out))
    return build_pool(recipe, lambda: tasks, options.out, lambda: other)


def _refuse_existing(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DemoInputError(f"{out} exists and is not an empty folder; choose another")


def _show_pool(root: Path, is_default: bool, console: Console) -> None:
    from .measure import make_table
    from .pools import read_description

    description = read_description(root)
    title = f"Accuracy in percent, built in {description['build_seconds']} s"
    console.print(make_table(description["accuracy"], title))
    where = "" if is_default else f" modelpool.root={root}"
    there = "" if is_default else f" taskpool.root={root}"
    run = "" if is_default else f" --root {root}"
    console.print(f"The pool is in {root}. Use it:", soft_wrap=True)
    console.print(
        "  fusion_bench method=task_arithmetic"
        f" modelpool=demo{where} taskpool=demo{there}",
        soft_wrap=True,
    )
    console.print(f"  python -m fusion_plugins.demo run{run}", soft_wrap=True)


def _build_command(options: argparse.Namespace, console: Console) -> None:
    from .build import default_root

    root = _build(options)
    _show_pool(root, root == default_root(DemoRecipe()), console)


def _run_command(options: argparse.Namespace, console: Console) -> None:
    from .measure import choose_methods, make_table, measure, save_results

    choose_methods(options.methods)
    results = measure(options.root, options.seed, options.methods)
    console.print(make_table(results, "Accuracy in percent on the demo pool"))
    for path in save_results(results, options.out):
        console.print(f"Saved {path}", soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; wrong input ends with exit status 2 and a message."""
    options = make_parser().parse_args(arguments)
    # FusionBench and its libraries warn on import about things no user can change.
    logging.basicConfig(level=logging.WARNING)
    command = {
        "build": _build_command,
        "build-text": build_text_command,
        "build-resnet": build_resnet_command,
        "build-openclip": build_openclip_command,
        "run": _run_command,
    }[options.command]
    try:
        command(options, Console())
    except (DemoInputError, ModuleNotFoundError, PermissionError) as error:
        Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
