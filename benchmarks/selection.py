"""Selection without labels beside the labelled oracle of the same candidates, and its cost.

    python benchmarks/selection.py [modelpool=demo taskpool=demo ...] [--bases NAME ...]
                                   [--seed 0] [--out selection.json]

For each method: the options chosen by agreement with the experts, their accuracy, and the
best accuracy of any candidate by the labels of the test set. Cost is the time of the whole
selection divided by (candidates x time to predict all unlabelled samples once). Prints a
Markdown table.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import machine, quiet
from fusion_bench import BaseModelPool
from fusion_bench.utils import instantiate
from fusion_bench.utils.hydra_utils import get_default_config_path
from hydra import compose, initialize_config_dir
from lightning import Fabric

from fusion_plugins import SelectAlgorithm
from fusion_plugins.awd.base_method import build_base_method
from fusion_plugins.common.options import plain
from fusion_plugins.pools import with_shared_heads
from fusion_plugins.pools.task_heads import with_task_heads

_POOLS = ["modelpool=demo", "taskpool=demo"]
_BASES = ["task_arithmetic", "ties_merging", "awd"]
_HEADER = (
    "| method | chosen | agreement | accuracy | oracle | its accuracy | candidates,"
    " dropped | cost |\n|---|---|---|---|---|---|---|---|"
)


def composed(*overrides: str) -> Any:
    with initialize_config_dir(get_default_config_path(), version_base=None):
        return compose("fabric_model_fusion", overrides=list(overrides))


def selected(pool: BaseModelPool, base: str, fabric: Fabric, seed: int) -> dict:
    """A selection over the base's scaling, with its time."""
    config = plain(composed(f"method={base}").method)
    algorithm = SelectAlgorithm(base=config, seed=seed, max_samples=None)
    algorithm.fabric = fabric
    start = time.perf_counter()
    algorithm.run(pool)
    return {
        "base": base,
        "seconds": time.perf_counter() - start,
        "methods": [
            algorithm.options.grid.method(candidate["options"])
            for candidate in algorithm.response["candidates"]
        ],
        **algorithm.response,
    }


def accuracy(
    pool: BaseModelPool, taskpool: Any, config: Mapping[str, Any], fabric: Fabric
) -> float:
    """Percent on the test set, mean over tasks."""
    own = config["_target_"].startswith("fusion_plugins.")
    view = pool if own else with_shared_heads(pool)
    merged = build_base_method(config, None, fabric).run(view)
    report = taskpool.evaluate(with_task_heads(merged, pool))
    return 100 * report["average"]["accuracy"]


def row(found: Mapping[str, Any]) -> str:
    candidates, accuracies = found["candidates"], found["accuracies"]
    options = [candidate["options"] for candidate in candidates]
    at, best = options.index(found["chosen"]), accuracies.index(max(accuracies))
    whole = [c["seconds"]["score"] for c in candidates if not c["dropped"]]
    cost = found["seconds"] / (len(candidates) * sum(whole) / len(whole))
    return (
        f"| {found['base']} | {found['chosen']} | {100 * candidates[at]['mean']:.1f} |"
        f" {accuracies[at]:.1f} | {options[best]} | {accuracies[best]:.1f} |"
        f" {len(candidates)}, {sum(c['dropped'] for c in candidates)} | {cost:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="of modelpool and taskpool")
    parser.add_argument("--bases", nargs="+", default=_BASES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("selection.json"))
    arguments = parser.parse_args()
    results = []
    with quiet():
        config = composed(*(arguments.overrides or _POOLS))
        pool, taskpool = instantiate(config.modelpool), instantiate(config.taskpool)
        fabric = Fabric(devices=1)
        for base in arguments.bases:
            found = selected(pool, base, fabric, arguments.seed)
            found["accuracies"] = [
                accuracy(pool, taskpool, method, fabric) for method in found["methods"]
            ]
            results.append(found)
    print(_HEADER, *map(row, results), sep="\n")
    arguments.out.write_text(json.dumps({"machine": machine(), "results": results}))


if __name__ == "__main__":
    main()
