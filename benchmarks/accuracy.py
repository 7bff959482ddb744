"""Accuracy tables: methods on a demo pool over seeds, beside FusionBench's own methods.

    python benchmarks/accuracy.py [--root POOL] [--seeds 0 1 2] [--rows awd tinting_pp]
                                  [--out accuracy.json]

A row is a method as one would type it for `fusion_bench`; learned ones run once per seed
(of the samples' order; the pool stays the same). Finished cells are kept in the JSON
file, so an interrupted table goes on where it stopped. Prints a Markdown table of mean
and spread (largest minus smallest) over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import fusion_bench
from fusion_bench.compat.method import load_algorithm_from_config
from fusion_bench.utils import instantiate
from hydra import compose, initialize_config_dir
from lightning import Fabric, seed_everything
from lightning.fabric.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf

from fusion_plugins.compare.evaluation import evaluate_experts
from fusion_plugins.demo import demo_modelpool, demo_taskpool
from fusion_plugins.demo.measure import EXPERTS, quiet

# Row -> overrides. Those in LEARNED run once per seed.
ROWS = {
    "pretrained": None,
    EXPERTS: None,
    "simple_average": "method=simple_average",
    "task_arithmetic": "method=task_arithmetic",
    "ties_merging": "method=ties_merging",
    "awd": "method=awd",
    "awd_scale_free": "method=awd method.scale_free=true",
    "adamerging": "method=adamerging",
    "adamerging_task_wise": "method=adamerging_task_wise",
    "adamerging_pp": "method=adamerging_pp",
    "adamerging_task_wise_pp": "method=adamerging_task_wise_pp",
    "awd_adamerging": "method=awd_adamerging",
    "adamerging_guarded": "method=adamerging method.stop_on_collapse=true",
    "upstream_adamerging": "method=adamerging/clip method.num_workers=0",
    "tinting": "method=tinting",
    "tinting_pp": "method=tinting_pp",
    "tinting_pp_block": "method=tinting_pp method.tint=vision_model.encoder.layers.LAST",
    "tinting_soft": "method=tinting method.labels=soft",
    "tinting_joint": "method=tinting_pp method.schedule_kind=joint",
    "tinting_coefficients_only": "method=tinting_pp method.learn_tints=false",
    "tinting_tints_only": "method=tinting_pp method.learn_coefficients=false",
    "upstream_surgery": "method=surgery/adamerging_surgery method.num_workers=0",
}
LEARNED = [name for name in ROWS if "adamerging" in name or "tinting" in name]
LEARNED.append("upstream_surgery")


def main() -> None:
    options = _options()
    done = json.loads(options.out.read_text()) if options.out.is_file() else {}
    taskpool = demo_taskpool(options.root)
    for row in options.rows:
        for seed in options.seeds if row in LEARNED else [0]:
            key = f"{row}/{seed}"
            if key in done:
                continue
            try:
                done[key] = measure_cell(row, seed, options, taskpool)
            except Exception as error:  # noqa: BLE001  one method must not lose others
                done[key] = {"error": f"{type(error).__name__}: {error}"}
            print(key, {k: v for k, v in done[key].items() if k != "ece"}, flush=True)
            options.out.write_text(json.dumps(done, indent=1))
    print(markdown(done, options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="a demo pool's folder (default: the built-in)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--out", type=Path, default=Path("accuracy.json"))
    return parser.parse_args()


def measure_cell(row: str, seed: int, options, taskpool) -> dict:
    """Accuracy and calibration per task, seconds, and parameters added."""
    pool = demo_modelpool(options.root)
    seed_everything(seed, verbose=False)
    if row == EXPERTS:
        with quiet():
            found = evaluate_experts(pool, taskpool)
        return {"accuracy": {task: found[task]["accuracy"] for task in found}}
    start = time.perf_counter()
    with quiet(), tempfile.TemporaryDirectory() as folder:
        model, extra = _merge(row, seed, options, pool, Path(folder))
        seconds = time.perf_counter() - start
        report = taskpool.evaluate(model)
    tasks = pool.model_names
    tints = report["model_info"].get("tints", {"tints": 0, "percent": 0})
    return {
        "accuracy": {task: report[task]["accuracy"] for task in tasks},
        "ece": {task: report[task]["ece"] for task in tasks},
        "seconds": seconds,
        "parameters_added": tints["tints"],
        "percent_added": tints["percent"],
    } | extra


def _merge(row: str, seed: int, options, pool, folder: Path):
    if row == "pretrained":
        return pool.load_pretrained_model(), {}
    overrides = ROWS[row].split() + [f"seed={seed}"]
    if "LAST" in ROWS[row]:
        depth = pool.load_pretrained_model().config.num_hidden_layers
        overrides = [o.replace("LAST", str(depth - 1)) for o in overrides]
    config = _compose(overrides).method
    algorithm = _build(config, folder)
    model = algorithm.run(pool)
    guard = getattr(algorithm, "guard_history", None)
    extra = {}
    if guard:
        extra["agreement"] = [(e["step"], round(e["agreement"], 4)) for e in guard]
    selection = getattr(algorithm, "_selection", None)
    if selection is not None:
        extra["kept"] = selection.kept
    return model, extra


def _compose(overrides: list[str]) -> DictConfig:
    site = Path(fusion_bench.__file__).resolve().parents[1] / "fusion_bench_config"
    with initialize_config_dir(str(site), version_base=None):
        return compose("fabric_model_fusion", overrides=overrides)


def _build(config: DictConfig, folder: Path):
    """The method, with a Fabric of its own and nothing kept between cells."""
    config = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    for key, value in (
        ("cache_dir", str(folder)),
        ("save_merging_weights", False),
        ("checkpoint_dir", None),
        ("save_model", False),
        ("num_workers", 0),
        ("fast_dev_run", False),
    ):
        if key in config:
            config[key] = value
    fabric = Fabric(
        accelerator="auto", devices=1, loggers=TensorBoardLogger(str(folder))
    )
    if "_target_" in config:
        algorithm = instantiate(config, _recursive_=config.get("_recursive_", False))
    else:
        algorithm = load_algorithm_from_config(config)
    for name in ("_fabric_instance", "_fabric"):
        if hasattr(algorithm, name):
            setattr(algorithm, name, fabric)
    return algorithm


def markdown(done: dict, options) -> str:
    """Mean over seeds, spread in brackets, percent; ECE and seconds likewise."""
    tasks = list(next(iter(done.values()))["accuracy"])
    head = ["method", *tasks, "average", "ECE", "seconds", "parameters added"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in options.rows:
        cells = [v for k, v in done.items() if k.split("/")[0] == row]
        cells = [c for c in cells if "error" not in c]
        if not cells:
            continue
        values = [[c["accuracy"][t] for c in cells] for t in tasks]
        values.append([statistics.mean(c["accuracy"].values()) for c in cells])
        ece = [statistics.mean(c["ece"].values()) for c in cells if "ece" in c]
        seconds = [c["seconds"] for c in cells if "seconds" in c]
        added = cells[0].get("percent_added", 0)
        line = [row, *(_percent(v) for v in values), _percent(ece) if ece else ""]
        line.append(f"{statistics.mean(seconds):.1f}" if seconds else "")
        line.append(f"{cells[0]['parameters_added']} ({added:.2f} %)" if added else "0")
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


def _percent(values: list[float]) -> str:
    text = f"{100 * statistics.mean(values):.1f}"
    spread = 100 * (max(values) - min(values))
    return f"{text} ({spread:.1f})" if len(values) > 1 else text


if __name__ == "__main__":
    main()
