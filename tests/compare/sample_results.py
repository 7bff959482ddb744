"""Invented results folders for tests of the report. No number in here was measured."""

import json
from pathlib import Path

import numpy as np

TASKS = ("digits", "shapes", "textures", "letters", "counting", "colours")
# method, overrides, average level, merge seconds, has coefficients, has cosines, learns
METHODS = (
    ("pretrained", {}, 0.61, 0.0, False, False, False),
    ("experts", {}, 0.95, 0.0, False, False, False),
    ("simple_average", {}, 0.65, 0.21, False, False, False),
    ("task_arithmetic", {}, 0.60, 0.19, False, False, False),
    ("ties_merging", {}, 0.64, 0.93, False, False, False),
    ("awd", {}, 0.607, 1.1, False, True, False),
    ("awd", {"alpha": 0.2, "scale_free": True}, 0.63, 1.2, False, True, False),
    ("adamerging", {"steps": 100}, 0.70, 96.0, True, False, True),
    ("tinting_pp", {}, 0.86, 133.0, True, False, True),
    ("wudi/wudi", {}, None, None, False, False, False),
)
# The largest comparison that tables, figures and page are made for.
LARGE_TASKS = (
    "sun397 stanford-cars resisc45 eurosat svhn gtsrb mnist dtd oxford_flowers102"
    " pcam fer2013 oxford-iiit-pet stl10 cifar100 cifar10 food101 fashion_mnist"
    " emnist_letters kmnist rendered-sst2"
).split()
_SVC = "singular_value_calibration"
LARGE_METHODS = (
    ("pretrained", {}, 0.561, 0.0, False, False, False),
    ("experts", {}, 0.941, 0.0, False, False, False),
    ("simple_average", {}, 0.609, 0.8, False, False, False),
    ("task_arithmetic", {"scaling_factor": 0.3}, 0.604, 0.9, False, False, False),
    ("ties_merging", {"scaling_factor": 0.3}, 0.631, 14.0, False, False, False),
    ("dare/task_arithmetic", {"sparsity_ratio": 0.9}, 0.601, 1.1, False, False, False),
    ("task_singular_vector/TaskSingularVectorMerging", {}, 0.771, 38, 0, 0, 0),
    ("isotropic_merging/iso_cts", {}, 0.779, 45.0, False, False, False),
    ("wudi/wudi", {}, 0.752, 61.0, False, False, False),
    (f"{_SVC}/task_singular_vector", {"gamma": 0.5}, 0.772, 51.0, False, False, False),
    (f"{_SVC}/dare_task_arithmetic", {"gamma": 0.5}, 0.61, 12.0, False, False, False),
    ("awd", {}, 0.619, 22.0, False, True, False),
    ("awd", {"base": "ties_merging", "alpha": 0.2}, 0.639, 31.0, False, True, False),
    (
        "awd",
        {"base.scaling_factor": 0.4, "alpha": 0.2},
        0.641,
        22.0,
        False,
        True,
        False,
    ),
    ("adamerging", {}, 0.745, 940.0, True, False, True),
    ("adamerging", {"disentangle": True, "steps": 1000}, 0.752, 1860.0, 1, True, 1),
    ("tinting", {}, 0.81, 1200.0, True, False, True),
    ("tinting_pp", {"granularity": "tensor"}, 0.861, 1310.0, True, False, True),
    ("select", {"base": "ties_merging"}, 0.65, 210.0, False, False, False),
    ("regmean_plusplus/clip_regmean_plusplus", {}, None, None, False, False, False),
)
VERSIONS = {
    "fusion-plugins": "0.0.0",
    "fusion-bench": "0.2.33",
    "torch": "2.6.0",
    "transformers": "4.50.0",
    "python": "3.12.1",
}


def write_sample(
    folder,
    methods=METHODS,
    tasks=TASKS,
    seeds=(0, 1, 2),
    layers=150,
    published=None,
    title="demo",
):
    """Write a folder in the layout of `fusion_plugins.compare`; returns its path."""
    folder = Path(folder)
    (folder / "cells").mkdir(parents=True)
    random = np.random.default_rng(0)
    cells = []
    for method in methods:
        once = method[0] in ("pretrained", "experts")
        for seed in seeds[:1] if once else seeds:
            cells.append(sample_cell(method, seed, tasks, layers, random))
    add_shares(cells)
    for number, cell in enumerate(cells):
        name = f"{number:03d}-seed{cell['seed']}"
        place = {"id": name, "cell": name, "order": number}
        _dump(folder / "cells" / f"{name}.json", cell | place)
    _dump(
        folder / "compare.json",
        {
            "format": 1,
            "title": title,
            "tasks": list(tasks),
            "started": "2026-01-02T03:04:05+00:00",
            "modelpool": {
                "_target_": "pool",
                "models": {t: f"pool/{t}" for t in tasks},
            },
            "taskpool": {"_target_": "taskpool", "batch_size": 64},
            "published": published,
        },
    )
    return folder


def write_large(folder, **options):
    """20 methods x 20 tasks x 3 seeds."""
    large = {"methods": LARGE_METHODS, "tasks": LARGE_TASKS, "title": "vit-b16_TA20"}
    return write_sample(folder, published=sample_published(), **large, **options)


def add_shares(cells):
    """Every finished cell as a share of the experts' cell, where there is one."""
    experts = next((cell for cell in cells if cell["method"] == "experts"), None)
    for cell in cells if experts else ():
        if cell["status"] == "done":
            cell["normalised"] = {
                task: cell["tasks"][task]["accuracy"] / result["accuracy"]
                for task, result in experts["tasks"].items()
            }
            cell["normalised_average"] = np.mean(
                list(cell["normalised"].values())
            ).item()


def sample_cell(method, seed, tasks, layers, random):
    name, overrides, level, seconds, has_coefficients, has_cosines, learns = method
    options = ", ".join(f"{key}={value}" for key, value in overrides.items())
    cell = {
        "format": 1,
        "method": name,
        "part": None,
        "parts": [None],
        "identity": {"pools": "p", "method": "m"},
        "label": f"{name} ({options})" if overrides else name,
        "overrides": overrides,
        "seed": seed,
        "status": "failed" if level is None else "done",
        "error": None,
        "metric": None if level is None else "accuracy",
        "higher_is_better": None if level is None else True,
        "tasks": {},
        "average": {},
        "normalised": None,
        "normalised_average": None,
        "seconds": {"merge": seconds, "evaluate": 3.4},
        "peak_memory_mib": {"cpu": 812.0 + 3 * (seconds or 0), "cuda": None},
        "parameters": {"model": 825000, "added": 6192 if "tinting" in name else 0},
        "device": "cpu",
        "versions": VERSIONS,
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "finished": "2026-01-02T03:14:05+00:00",
        "config": {"_target_": f"package.{name}", "seed": None, **overrides},
        "artifacts": {"coefficients": None, "cosines": None, "history": None},
    }
    if level is None:
        cell["error"] = sample_error()
        return cell
    cell["tasks"] = sample_tasks(level, tasks, random)
    metrics = next(iter(cell["tasks"].values()))
    cell["average"] = {
        m: float(np.mean([result[m] for result in cell["tasks"].values()]))
        for m in metrics
    }
    if has_coefficients:
        cell["artifacts"]["coefficients"] = sample_coefficients(tasks, layers, random)
    if has_cosines:
        cell["artifacts"]["cosines"] = sample_cosines(tasks, random)
    if learns:
        cell["artifacts"]["history"] = sample_history(random)
    if name == "select":
        cell["artifacts"]["selection"] = sample_selection()
    return cell


def sample_error():
    return {
        "type": "ValueError",
        "message": "The pool has no weights for 'visual.proj'; expected one per linear layer.",
        "traceback": 'Traceback (most recent call last):\n  File "wudi.py", line 84, in run\n'
        "    raise ValueError(...)\nValueError: The pool has no weights for 'visual.proj'",
    }


def sample_tasks(level, tasks, random):
    results = {}
    for index, task in enumerate(tasks):
        level_here = level + 0.25 * (1 - level) * np.sin(2.4 * index) * 2
        accuracy = float(np.clip(level_here + random.normal(0, 0.006), 0.01, 0.999))
        results[task] = {
            "accuracy": accuracy,
            "loss": float(2.4 * (1 - accuracy) + 0.1),
            "ece": float(0.15 * (1 - accuracy) + 0.02),
        }
    return results


def sample_keys(layers):
    parts = ("attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj", "ln_1", "ln_2")
    keys = ["visual.conv1.weight", "visual.class_embedding", "visual.ln_pre.weight"]
    block = 0
    while len(keys) < layers:
        for part in parts:
            for kind in ("weight", "bias"):
                keys.append(f"visual.transformer.resblocks.{block}.{part}.{kind}")
        block += 1
    return keys[:layers]


def sample_coefficients(tasks, layers, random):
    depth = np.linspace(0, 1, layers)
    values = [
        np.clip(
            0.3 + 0.25 * depth * np.sin(3 * depth + t) + random.normal(0, 0.03, layers),
            0,
            1,
        )
        for t in range(len(tasks))
    ]
    return {
        "tasks": list(tasks),
        "keys": sample_keys(layers),
        "values": np.round(values, 6).tolist(),
    }


def sample_cosines(tasks, random):
    count = len(tasks)
    noise = np.abs(np.random.default_rng(0).normal(0.03, 0.02, (count, count)))
    before = (noise + noise.T) / 2  # of the pool, whatever the method
    np.fill_diagonal(before, 1)
    after = before * random.uniform(0.1, 0.5)
    np.fill_diagonal(after, 1)
    return {"tasks": list(tasks), "before": before.tolist(), "after": after.tolist()}


def sample_history(random, steps=120):
    decay = np.exp(-np.arange(steps) / 40) * random.uniform(0.5, 1)
    return {
        "step": list(range(steps)),
        "loss": (0.4 + 1.2 * decay + random.normal(0, 0.03, steps)).tolist(),
        "entropy": (0.2 + 0.9 * decay + random.normal(0, 0.02, steps)).tolist(),
    }


def sample_selection():
    candidates = [
        {
            "options": {"scaling_factor": scaling},
            "mean": 0.9 - (scaling - 0.3) ** 2,
            "standard_error": 0.01,
            "dropped": scaling > 0.8,
        }
        for scaling in (0.1, 0.2, 0.3, 0.4, 0.6, 0.9)
    ]
    chosen = {"scaling_factor": 0.3}
    return {"score": "agreement", "chosen": chosen, "candidates": candidates}


def sample_published():
    return {
        "source": "A made-up paper, table 1",
        "checkpoints": "made-up checkpoints",
        "differs": ["other data", "another seed"],
        "rows": [
            {
                "label": "Tinting++",
                "method": "tinting_pp",
                "tasks": {"digits": 91.5, "shapes": 84.2},
                "average": 88.1,
            },
            {"label": "AWD", "method": "awd", "tasks": None, "average": 62.0},
            {
                "label": "Somebody's method",
                "method": None,
                "tasks": None,
                "average": 70.5,
            },
        ],
    }


def _dump(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
