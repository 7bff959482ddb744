"""Accuracy on a text pool: methods at their own best scaling, learned ones over seeds.

    python benchmarks/text_accuracy.py --root POOL [--seeds 0 1 2] [--rounds 30]
                                       [--out text_accuracy.json] [--plot scaling.png]

POOL is made by `fusion-plugins demo build-text`. A cell is one method at one
scaling or one seed; finished ones are kept in the JSON file, so an interrupted table goes
on where it stopped. Learned methods all see `rounds` batches of 16 sentences per task.
Prints a Markdown table, then every cell of the sweeps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from common import quiet
from fusion_bench import BaseModelPool
from fusion_bench.utils import instantiate
from fusion_bench.utils.hydra_utils import get_default_config_path
from hydra import compose, initialize_config_dir
from lightning import Fabric, seed_everything
from lightning.fabric.loggers import TensorBoardLogger
from omegaconf import OmegaConf

from fusion_plugins.demo.text_pools import demo_text_modelpool, demo_text_taskpool
from fusion_plugins.pools import with_shared_heads

# Row -> (overrides, name of the swept option, its values). One run each: no chance in it.
_SCALINGS = [0.2, 0.3, 0.4, 0.45, 0.5, 0.6]
_LOW = [
    0.1,
    0.2,
    0.3,
    0.4,
]  # where the published step is too long, see docs/text_pool.md
_AWD = "method=awd method.granularity"
_FREE = "method.scale_free=true"
SWEPT = {
    "task_arithmetic": ("method=task_arithmetic", "scaling_factor", _SCALINGS),
    "ties_merging": ("method=ties_merging", "scaling_factor", [0.3, 0.6, 0.9, 1.2]),
    "awd (model)": (f"{_AWD}=model", "base.scaling_factor", _SCALINGS),
    "awd (tensor)": (f"{_AWD}=tensor", "base.scaling_factor", _LOW),
    "awd (row)": (f"{_AWD}=row", "base.scaling_factor", _LOW),
    "awd (model, scale-free)": (
        f"{_AWD}=model {_FREE}",
        "base.scaling_factor",
        _SCALINGS,
    ),
    "awd (tensor, scale-free)": (
        f"{_AWD}=tensor {_FREE}",
        "base.scaling_factor",
        _SCALINGS,
    ),
    "awd (row, scale-free)": (f"{_AWD}=row {_FREE}", "base.scaling_factor", _SCALINGS),
}
_COMMON = "method.guard_every=0 method.num_workers=0"
_ADAMERGING = f"method.preset=official method.steps={{rounds}} method.batches_per_task=1 {_COMMON}"
_TINTING = (
    f"method.preset=official method.rounds={{rounds}} method.batch_size=16 {_COMMON}"
)
# Row -> overrides; once per seed of the sentences' order.
LEARNED = {
    "adamerging": f"method=adamerging {_ADAMERGING}",
    "adamerging (lr 1e-2)": f"method=adamerging method.lr=1e-2 {_ADAMERGING}",
    "awd_adamerging (lr 1e-2)": f"method=awd_adamerging method.lr=1e-2 {_ADAMERGING}",
    "tinting": f"method=tinting {_TINTING}",
    "tinting_pp": f"method=tinting_pp {_TINTING}",
}
PLAIN = ["pretrained + heads", "experts", "simple_average"]
ROWS = [*PLAIN, *SWEPT, *LEARNED]


def main() -> None:
    options = _options()
    done = json.loads(options.out.read_text()) if options.out.is_file() else {}
    taskpool = _taskpool(options)
    for row, overrides, variant in cells(options):
        key = f"{row}|{variant}|{options.rounds if row in LEARNED else ''}"
        if key not in done:
            done[key] = measure(row, overrides, variant, options, taskpool)
            print(key, json.dumps(done[key]), flush=True)
            options.out.write_text(json.dumps(done, indent=1))
    print(markdown(done, options))
    if options.plot:
        plot(done, options.plot)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="folder made by build-text")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument(
        "--precision", default="32-true", help="Fabric's, of learning and evaluation"
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--out", type=Path, default=Path("text_accuracy.json"))
    parser.add_argument("--plot", type=Path, help="picture of the sweeps")
    return parser.parse_args()


def cells(options):
    """(row, overrides, variant) of every cell; variants are scalings or seeds."""
    for row in options.rows:
        if row in SWEPT:
            overrides, name, values = SWEPT[row]
            for value in values:
                yield row, f"{overrides} method.{name}={value}", value
        elif row in PLAIN:
            yield row, "method=simple_average", 0
    for seed in options.seeds:  # every method once before any of them twice
        for row in (r for r in options.rows if r in LEARNED):
            text = LEARNED[row].format(rounds=options.rounds)
            yield row, f"{text} seed={seed}", seed


def measure(row: str, overrides: str, variant, options, taskpool) -> dict:
    """Accuracy and calibration per task, and the seconds of the merge."""
    pool = demo_text_modelpool(options.root)
    seed_everything(variant if row in LEARNED else 0, verbose=False)
    with quiet():
        if row == "experts":
            return _experts(options, pool)
        start = time.perf_counter()
        model = _merge(row, overrides, options, pool)
        seconds = time.perf_counter() - start
        report = taskpool.evaluate(model)
    result = {
        score: {task: round(report[task][score], 4) for task in pool.model_names}
        for score in ("accuracy", "ece")
    }
    return result | {"seconds": round(seconds, 1)}


def _taskpool(options, tasks: list[str] | None = None):
    taskpool = demo_text_taskpool(options.root, tasks)
    taskpool._fabric_instance = Fabric(devices=1, precision=options.precision)
    return taskpool


def _experts(options, pool: BaseModelPool) -> dict:
    result = {"accuracy": {}, "ece": {}}
    for task in pool.model_names:
        report = _taskpool(options, [task]).evaluate(pool.load_model(task))
        for score in result:
            result[score][task] = round(report[task][score], 4)
    return result


def _merge(row: str, overrides: str, options, pool: BaseModelPool):
    if row == "pretrained + heads":
        return pool.load_pretrained_model()
    with tempfile.TemporaryDirectory() as folder:
        algorithm = _build(overrides.split())
        if row not in LEARNED:
            ours = row.startswith("awd")
            return algorithm.run(pool if ours else with_shared_heads(pool))
        algorithm._fabric_instance = Fabric(
            devices=1,
            precision=options.precision,
            loggers=TensorBoardLogger(folder),
        )
        return algorithm.run(pool)


def _build(overrides: list[str]):
    with initialize_config_dir(get_default_config_path(), version_base=None):
        config = compose("fabric_model_fusion", overrides=overrides)
    method = OmegaConf.create(OmegaConf.to_container(config.method, resolve=True))
    if "save_model" in method:
        method.save_model = False
    return instantiate(method, _recursive_=method.get("_recursive_", False))


def markdown(done: dict, options) -> str:
    """Best of each sweep; mean over the seeds, spread in brackets; percent."""
    tasks = list(next(iter(done.values()))["accuracy"])
    head = ["method", *tasks, "average", "ECE"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in options.rows:
        cells, label = _chosen(row, done, options)
        values = [[c["accuracy"][t] for c in cells] for t in tasks]
        values.append([_mean(c) for c in cells])
        values.append([statistics.mean(c["ece"].values()) for c in cells])
        lines.append("| " + " | ".join([label, *map(_percent, values)]) + " |")
    lines += ["", "Averages of the sweeps:"]
    for row in (r for r in options.rows if r in SWEPT):
        shown = [f"{s}: {100 * _mean(c):.1f}" for s, c in _sweep(row, done).items()]
        lines.append(f"- {row}: " + ", ".join(shown))
    return "\n".join(lines)


def _chosen(row: str, done: dict, options) -> tuple[list[dict], str]:
    if row in SWEPT:
        sweep = _sweep(row, done)
        best = max(sweep, key=lambda scaling: _mean(sweep[scaling]))
        return [sweep[best]], f"{row}, {best}"
    rounds = options.rounds if row in LEARNED else ""
    variants = options.seeds if row in LEARNED else [0]
    return [done[f"{row}|{variant}|{rounds}"] for variant in variants], row


def _sweep(row: str, done: dict) -> dict[float, dict]:
    return {value: done[f"{row}|{value}|"] for value in SWEPT[row][2]}


def _mean(cell: dict) -> float:
    return statistics.mean(cell["accuracy"].values())


def _percent(values: list[float]) -> str:
    text = f"{100 * statistics.mean(values):.1f}"
    spread = 100 * (max(values) - min(values))
    return f"{text} ({spread:.1f})" if len(values) > 1 else text


def plot(done: dict, path: Path) -> None:
    """Scaling against average accuracy, one line per swept method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for row in (r for r in SWEPT if SWEPT[r][2] == _SCALINGS):
        sweep = _sweep(row, done)
        averages = [100 * _mean(cell) for cell in sweep.values()]
        axes.plot(list(sweep), averages, marker="o", label=row)
    experts = 100 * _mean(done["experts|0|"])
    axes.axhline(experts, color="grey", linestyle=":", label="experts")
    axes.set_xlabel("scaling factor")
    axes.set_ylabel("average accuracy (%)")
    axes.legend()
    figure.savefig(path, dpi=120)
    print(f"Saved {path}")


if __name__ == "__main__":
    main()
