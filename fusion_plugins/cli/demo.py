"""``fusion-plugins demo``: build the offline pools, measure methods on them."""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..demo.pool_folder import CONFIGS, output_folder, pool_format, read_description
from ..demo.recipe import (
    DATA_DEFAULTS,
    OPENCLIP_RECIPE,
    DemoRecipe,
    ResNetRecipe,
    TextRecipe,
)
from .parsing import add_recipe, given, names, path

if TYPE_CHECKING:
    from rich.table import Table

_DATA = "FUSION_PLUGINS_DATA"
_NPZ = "folder of .npz files with x_train y_train x_test y_test class_names"


def add_to(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser("demo", help="offline pools of real models")
    kinds = parser.add_subparsers(dest="action", required=True)
    run = kinds.add_parser("run", help="compare merging methods on a pool")
    run.add_argument("--root", type=path, help="a pool's folder (default: built in)")
    run.add_argument("--seed", type=int, default=0, help="of the built-in pool")
    run.add_argument("--methods", type=names, help="for example experts,awd")
    run.add_argument(
        "--out", type=path, help="results folder (default: outputs/demo/POOL)"
    )
    run.set_defaults(run=_run)
    clip = kinds.add_parser("build", help="train small CLIP models")
    clip.add_argument("--data", type=path, help=f"{_NPZ} (default: built-in tasks)")
    clip.add_argument("--other", type=path, help="such a folder, only for pretraining")
    clip.add_argument("--out", type=path, help="the new pool; needed with --data")
    add_recipe(clip, DemoRecipe)
    clip.set_defaults(run=_build)
    resnet = kinds.add_parser("build-resnet", help="train small ResNets")
    resnet.add_argument("--data", type=path, help=f"{_NPZ}; others are built in")
    resnet.add_argument("--out", type=path, required=True, help="the new pool")
    add_recipe(resnet, ResNetRecipe)
    resnet.set_defaults(run=_build_resnet)
    text = kinds.add_parser("build-text", help="fine-tune an encoder on text tasks")
    text.add_argument(
        "--encoder", type=path, required=True, help="of a model with its tokenizer"
    )
    text.add_argument(
        "--data",
        type=path,
        help=f"folder of TASK/{{train,test}}.tsv (default: ${_DATA}/text)",
    )
    text.add_argument("--out", type=path, required=True, help="the new pool")
    text.add_argument("--tasks", type=names, help="some only, for example cr,mr")
    add_recipe(text, TextRecipe)
    text.set_defaults(run=_build_text)
    openclip = kinds.add_parser("build-openclip", help="a CLIP pool as OpenCLIP models")
    openclip.add_argument(
        "--from", dest="source", type=path, help="a CLIP pool (default: a small one)"
    )
    openclip.add_argument("--out", type=path, help="the new pool (default: cached)")
    openclip.add_argument("--seed", type=int, default=0, help="of the small CLIP pool")
    openclip.set_defaults(run=_build_openclip)


def _run(options: Namespace) -> None:
    from ..demo.run import run

    run(options.root, options.seed, options.methods, options.out)


def _build(options: Namespace) -> None:
    from ..demo import build_pool, ensure_pool, read_npz_folder
    from ..demo.npz_folder import load_tasks, task_names

    if options.out is not None:
        output_folder(options.out)
    elif options.data or options.other:
        raise ValueError("--data and --other need --out: the folder for the new pool")
    fields = given(options, DemoRecipe)
    if options.data is not None:
        named = {"tasks": options.tasks or task_names(options.data)}
        fields = DATA_DEFAULTS | fields | named
    recipe = DemoRecipe(**fields)
    if options.out is None:
        return _show(ensure_pool(recipe), recipe == DemoRecipe())
    tasks = load_tasks(recipe, options.data)
    other = read_npz_folder(options.other, recipe.image_size) if options.other else []
    _show(build_pool(recipe, lambda: tasks, options.out, lambda: other))


def _build_resnet(options: Namespace) -> None:
    from ..demo.resnet_build import build_resnet_pool

    recipe = ResNetRecipe(**given(options, ResNetRecipe))
    output_folder(options.out)
    _show(build_resnet_pool(recipe, options.out, options.data))


def _build_text(options: Namespace) -> None:
    recipe = TextRecipe(**given(options, TextRecipe))
    data = options.data or Path(os.environ.get(_DATA, ""), "text")
    if options.data is None and not os.environ.get(_DATA):
        raise ValueError(f"give --data, or set ${_DATA} to its parent folder")

    from ..demo.text_build import build_text_pool
    from ..demo.text_data import read_text_folder

    output_folder(options.out)
    tasks = read_text_folder(data, options.tasks)
    _show(build_text_pool(options.encoder, tasks, options.out, recipe))


def _build_openclip(options: Namespace) -> None:
    from ..demo.build import ensure_pool
    from ..demo.openclip_build import ensure_openclip_pool, export_pool

    recipe = replace(OPENCLIP_RECIPE, seed=options.seed)
    if options.out is None:
        if options.source is not None:
            raise ValueError("--from needs --out: the folder for the new pool")
        return _show(ensure_openclip_pool(recipe), recipe == OPENCLIP_RECIPE)
    output_folder(options.out)
    _show(export_pool(options.source or ensure_pool(recipe), options.out))


def _show(root: Path, built_in: bool = False) -> None:
    """What was built, and how to go on."""
    from rich.console import Console

    description = read_description(root)
    name = CONFIGS[pool_format(description)]
    pools = [f"{kind}={name}" for kind in ("modelpool", "taskpool")]
    if not built_in:
        pools = [f"{p} {p.split('=')[0]}.root={root}" for p in pools]
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(_table(description))
    console.print(f"The pool is in {root}. Use it:")
    console.print(f"  fusion_bench method=awd {' '.join(pools)}")
    console.print(f"  fusion-plugins demo run{'' if built_in else f' --root {root}'}")


def _table(description: dict) -> Table:
    """The accuracies measured at the build, in percent: models by tasks."""
    from rich import box
    from rich.table import Table

    title = f"Accuracy in percent, built in {description['build_seconds']} s"
    # Narrow enough for six tasks in a terminal of 80 columns, names whole.
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=0)
    tasks = list(description["tasks"])
    for name in ["", *tasks]:
        table.add_column(name, justify="right", no_wrap=True)
    for row, scores in description["accuracy"].items():
        table.add_row(row, *(f"{100 * scores[task]:.1f}" for task in tasks))
    return table
