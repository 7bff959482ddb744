"""Accuracy of merged ResNets with four kinds of batch normalisation statistics.

    fusion-plugins demo build-resnet --out POOL
    python benchmarks/image_models.py POOL --out outputs/image_models.json

Prints a Markdown table of averages over tasks; the file holds every task. About ten
minutes on two cores.
"""

import argparse
import json
import statistics
from pathlib import Path

from common import quiet
from fusion_bench.method import SimpleAverageAlgorithm, TiesMergingAlgorithm
from rich.console import Console

from fusion_plugins import AdaMergingAlgorithm, AWDAlgorithm, TintingAlgorithm
from fusion_plugins.demo import demo_resnet_modelpool, demo_resnet_taskpool
from fusion_plugins.merged.statistics import BatchNorm, RunningStatistics
from fusion_plugins.pools import load_base, load_task_vectors, with_shared_heads
from fusion_plugins.pools.loading import load_module
from fusion_plugins.pools.recalibration import recalibrate
from fusion_plugins.pools.task_heads import with_task_heads

COLUMNS = ("merged", "average", "recalibrated", "recalibrated_per_task")
UPSTREAM = {
    "pretrained, experts' heads": None,
    "simple average": SimpleAverageAlgorithm,
    "TIES, 0.3, top 20 %": lambda: TiesMergingAlgorithm(
        scaling_factor=0.3, threshold=20, remove_keys=[], merge_func="sum"
    ),
}
LEARNED = {"seed": 0, "save_model": False, "checkpoint_dir": None, "guard_every": 0}
OURS = {
    # FusionBench's own refuses models that count batches: AWD without a step is the same.
    "task arithmetic, 0.3": lambda **o: AWDAlgorithm(iterations=0, **o),
    "AWD, task arithmetic 0.3": lambda **o: AWDAlgorithm(**o),
    "AdaMerging": lambda **o: AdaMergingAlgorithm(
        preset="official", steps=100, lr=1e-2, **LEARNED, **o
    ),
    "Tinting++": lambda **o: TintingAlgorithm(
        rounds=50, sampling="confidence_gap", **LEARNED, **o
    ),
}


def upstream_model(pool, make, choice: str):
    """The result of one of FusionBench's methods, with the chosen statistics."""
    if make is None:
        merged = load_base(pool)
    else:
        merged = make().run(with_shared_heads(pool))
    if choice == "average":
        RunningStatistics(BatchNorm(choice), *load_task_vectors(pool)).write(merged)
    merged = with_task_heads(merged, pool)
    if BatchNorm(choice).needs_samples:
        merged = recalibrate(merged, pool, per_task=BatchNorm(choice).per_task)
    return merged


def scores(model, taskpool, tasks) -> dict[str, float]:
    report = taskpool.evaluate(model)
    return {task: float(report[task]["accuracy"]) for task in tasks}


def experts(pool, root: str) -> dict[str, float]:
    found = {}
    for task in pool.model_names:
        taskpool = demo_resnet_taskpool(root, tasks=[task])
        found |= scores(load_module(pool, task), taskpool, [task])
    return found


def measure(root: str, console: Console) -> dict[str, dict[str, dict[str, float]]]:
    pool = demo_resnet_modelpool(root)
    tasks, taskpool = pool.model_names, demo_resnet_taskpool(root)
    with quiet():
        found = {"experts": {"own": experts(pool, root)}}
    for name, make in {**UPSTREAM, **OURS}.items():
        found[name] = {}
        for choice in COLUMNS:
            with quiet():
                if name in UPSTREAM:
                    model = upstream_model(pool, make, choice)
                else:
                    model = make(batch_norm=choice).run(pool)
                found[name][choice] = scores(model, taskpool, tasks)
            console.print(
                f"{name}, {choice}: {100 * statistics.mean(found[name][choice].values()):.1f}"
            )
    return found


def table(found) -> str:
    assert set(COLUMNS) <= {choice.value for choice in BatchNorm}
    lines = [
        "| method | " + " | ".join(COLUMNS) + " |",
        "|---|" + "---|" * len(COLUMNS),
    ]
    for name, columns in found.items():
        if name == "experts":
            lines.append(
                f"| experts, each on its own task | {100 * statistics.mean(columns['own'].values()):.1f} | | | |"
            )
        else:
            cells = [
                f"{100 * statistics.mean(columns[choice].values()):.1f}"
                for choice in COLUMNS
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", help="a pool's folder, --out of build-resnet")
    parser.add_argument("--out", default="outputs/image_models.json")
    options = parser.parse_args()
    console = Console()
    found = measure(options.root, console)
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(json.dumps(found, indent=2) + "\n")
    console.print(table(found), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
