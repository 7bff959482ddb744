"""Which of FusionBench's bundled methods run on a CLIP pool, alone and behind AWD.

    python benchmarks/bundled_methods.py [--table bundled.md] [--only NAME ...]

Trains two tiny pools, runs every method in one process (two minutes on one core, no
network) with two steps where it learns, prints the table of docs/compare.md, and ends
with status 1 where it differs from fusion_plugins/compare/bundled.py.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import quiet
from omegaconf import OmegaConf

from fusion_plugins.compare import load_results
from fusion_plugins.compare.bundled import NOT_RUNNING
from fusion_plugins.compare.composing import compose_method, method_names
from fusion_plugins.compare.files import flatten
from fusion_plugins.compare.methods import read_methods
from fusion_plugins.demo import ensure_pool
from fusion_plugins.demo.recipe import DemoRecipe
from fusion_plugins.demo.run import run

# Other models, training from scratch, analyses that merge nothing, and our own methods.
_OTHERS = re.compile(
    r"^(classification|lm_finetune|analysis|expert_sparsity|sparselo_|moe_pruner|bitdelta"
    r"|mixtral|depth_|awd|adamerging(_|$)|tinting|select|fusion_plugins|pruning/llama)"
    r"|llama|gpt2|flan_t5|openclip|resnet|slerp_lm|causal|mistral|qwen|tsvm"
    r"|error_accumulation|projected_energy|regmean/regmean|^dummy"
)
# Short runs: what matters is whether they end.
_SHORT = {
    "K": 2,
    "ada_iters": 2,
    "dataset_size": 8,
    "eval_grid_m": 2,
    "eval_grid_n": 2,
    "eval_iterations": 1,
    "gossip_max_steps": 1,
    "max_adamerging_steps": 2,
    "max_iters": 2,
    "max_steps": 2,
    "num_fisher_examples": 16,
    "num_regmean_examples": 16,
    "num_samples": 16,
    "num_steps": 2,
    "num_workers": 0,
    "surgery_steps": 2,
}
# What a config needs beyond its defaults on a CPU: options, and how the table says it.
_RANDES = "`mode: random_binary_diagonal_matrix`"
_NEEDS: dict[str, tuple[dict[str, Any], str]] = {
    "ada_svd/clip_vision": ({"device": "cpu"}, "`device: cpu` without a GPU"),
    "linear/weighted_average": ({"weights": [1, 1, 1]}, "`weights`, one per expert"),
    "randes/superposed_model_soup": (
        {"mode": "random_binary_diagonal_matrix"},
        _RANDES,
    ),
    "rankone_moe/rankone_moe": (
        {"name": "rankone_moe", "svd_accelerator": "cpu", "rank_k": 4},
        "`name: rankone_moe`, `svd_accelerator: cpu` without a GPU",
    ),
    "smile_upscaling/singular_projection_merging": (
        {"device": "cpu", "k": 8},
        "`device: cpu` without a GPU",
    ),
    "smile_upscaling/smile_upscaling": (
        {"upscaling_accelerator": "cpu", "k": 8},
        "`upscaling_accelerator: cpu` without a GPU",
    ),
    "wemoe/sparse_weight_ensembling_moe": (
        {"name": "sparse_clip_weight_ensembling_moe"},
        "`name: sparse_clip_weight_ensembling_moe`",
    ),
    "wemoe/weight_ensembling_moe": (
        {"name": "clip_weight_ensembling_moe"},
        "`name: clip_weight_ensembling_moe`",
    ),
}
_PAIR = ("linear/linear_interpolation", "pruning/magnitude_diff_pruning", "slerp/slerp")
# Not run here.
_UNTRIED = {
    "concrete_subspace/clip_post_defense_AWM": "a pool with a model named `merge`",
    "concrete_subspace/clip_post_defense_SAU": "a pool with a model named `merge`",
    "fw_merging/fw_soft": "`init_weight: base` and a GPU",
    "dawe/dawe_for_clip": "`microsoft/resnet-18` from the hub",
}
_TASKS = ("digits", "textures", "colours")
_ALONE, _BEHIND = "alone", "behind AWD"


def main() -> int:
    options = _options()
    os.environ["HF_HUB_OFFLINE"] = "1"
    names = [n for n in bundled() if not options.only or n in options.only]
    found = {name: {} for name in names}
    with TemporaryDirectory() as folder:
        for label, pool, methods in (
            ("three", _TASKS, [n for n in names if n not in (*_PAIR, *_UNTRIED)]),
            ("one", _TASKS[:1], [n for n in names if n in _PAIR]),
        ):
            for name, place, error in outcomes(Path(folder, label), pool, methods):
                found[name][place] = error
    lines = table(found)
    print("\n".join(lines))
    if options.table:
        options.table.write_text("\n".join(lines) + "\n")
    errors = {n: f[_ALONE] for n, f in found.items() if f.get(_ALONE)}
    wrong = set(errors) ^ (set(NOT_RUNNING) & set(found))
    for name in sorted(wrong):
        print(f"{name}: {errors.get(name, 'runs, but is listed as not running')}")
    return bool(wrong)


def bundled() -> list[str]:
    """FusionBench's method configs that take a CLIP vision pool."""
    return [name for name in method_names() if not _OTHERS.search(name)]


def outcomes(
    folder: Path, tasks: tuple[str, ...], names: list[str]
) -> Iterator[tuple[str, str, str]]:
    """(method, alone or behind AWD, its error or nothing) of all on one tiny pool."""
    if not names:
        return
    recipe = DemoRecipe(
        tasks=tasks,
        width=48,
        depth=2,
        text_width=32,
        text_depth=1,
        embedding=512,  # some methods want B/32's
        train_images=200,
        test_images=60,
        pretrain_images=100,
        pretrain_steps=20,
        expert_steps=20,
        batch_size=32,
    )
    rows = {}
    for name in names:
        alone = _options_of(name)
        behind = {"base": name} | {f"base.{key}": v for key, v in alone.items()}
        for place, row in ((_ALONE, {name: alone}), (_BEHIND, {"awd": behind})):
            rows[read_methods([row])[0].label] = name, place, row
    with quiet():
        run(
            ensure_pool(recipe, folder / "pool"),
            methods=[row for _, _, row in rows.values()],
            out=folder / "results",
        )
    cells = load_results(folder / "results")
    for label, (name, place, _) in rows.items():
        mine = cells[[str(c).startswith(label) for c in cells["label"]]]
        yield name, place, next(iter(mine["error"]), "no cell")


def _options_of(name: str) -> dict[str, Any]:
    config: Any = OmegaConf.to_container(compose_method(name))
    keys = [key for key, _ in flatten(config)]
    short = {k: _SHORT[k.split(".")[-1]] for k in keys if k.split(".")[-1] in _SHORT}
    return short | _NEEDS.get(name, ({}, ""))[0]


def table(found: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The Markdown table."""
    lines = ["| method | alone | as AWD's base | note |", "|---|---|---|---|"]
    for name, places in found.items():
        alone, behind = (_word(places.get(p)) for p in (_ALONE, _BEHIND))
        lines.append(f"| `{name}` | {alone} | {behind} | {_note(name, places)} |")
    return lines


def _word(error: str | None) -> str:
    if error is None:
        return "not tried"
    return "fails" if error else "runs"


def _note(name: str, places: Mapping[str, str]) -> str:
    if name in NOT_RUNNING:
        return f"in FusionBench: {NOT_RUNNING[name]}"
    needs = _UNTRIED.get(name) or _NEEDS.get(name, ({}, ""))[1]
    if name in _PAIR:
        needs = "a pool of one expert"
    behind = places.get(_BEHIND) or ""
    if "not one model" in behind:
        behind = "makes several models"
    return "; ".join(filter(None, [needs and f"needs {needs}", behind]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, help="also write it to this file")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some methods")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
