"""Other recordings of the same form, made by the plain loops of literal.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import literal
import numpy as np
import torch
from torch import Tensor

Arrays = dict[str, Tensor]
NAMES = ("stem.weight", "stem.bias", "norm.weight", "norm.bias")
NAMES += ("mid.weight", "mid.bias", "out.weight")


@dataclass(frozen=True)
class Shape:
    """What may differ between recordings; `image` is (channels, height, width)."""

    classes: tuple[int, ...]  # one number per task
    image: tuple[int, int, int]
    hidden: int
    features: int
    samples: int
    rounds: int
    batch: tuple[int, int]  # AdaMerging's batches per visit, and samples in each
    matrix: tuple[int, int]  # rows and columns of AWD's task vectors
    descent: dict[str, float]
    iterations: int
    recorded: tuple[int, ...]  # steps of the global descent

    @property
    def tasks(self) -> int:
        return len(self.classes)


FEW = Shape(
    classes=(3, 4),
    image=(1, 4, 5),
    hidden=12,
    features=7,
    samples=40,
    rounds=6,
    batch=(1, 10),
    matrix=(3, 17),
    descent={"alpha": 0.02, "lr": 0.02, "momentum": 0.0, "weight_decay": 0.0},
    iterations=25,
    recorded=(1, 4, 40),
)
# Long enough for whole rows to end on kinks.
MANY = Shape(
    classes=(2, 9, 4, 5, 3),
    image=(2, 3, 4),
    hidden=20,
    features=11,
    samples=64,
    rounds=20,
    batch=(3, 8),
    matrix=(9, 30),
    descent={"alpha": 2e-3, "lr": 4e-3, "momentum": 0.8, "weight_decay": 1e-3},
    iterations=350,
    recorded=(2, 33, 150, 400),
)


def write_recordings(folder: Path, one: Shape = FEW, other: Shape = MANY) -> None:
    """All eight files, half of them of each shape."""
    torch.manual_seed(5)
    _save(folder, "adamerging_layer_wise", _adamerging(one))
    _save(folder, "adamerging_layer_wise_pp", _adamerging(other, trimmed=True))
    _save(folder, "adamerging_task_wise", _adamerging(other, task_wise=True))
    _save(folder, "adamerging_task_wise_pp", _adamerging(one, True, True))
    _save(folder, "tinting", _tinting(one))
    _save(folder, "tinting_pp", _tinting(other, by_confidence=True))
    _save(folder, "awd_global", _awd_global(one))
    _save(folder, "awd_row", _awd_row(other))


def _adamerging(shape: Shape, task_wise: bool = False, trimmed: bool = False) -> Arrays:
    arrays = _inputs(shape, *shape.batch)
    run = literal.Run(arrays, NAMES, torch.float32)
    return arrays | {"final_lambdas": literal.adamerging(run, task_wise, trimmed)}


def _tinting(shape: Shape, by_confidence: bool = False) -> Arrays:
    arrays = _inputs(shape, 1, shape.batch[1])
    run = literal.Run(arrays, NAMES, torch.float32)
    arrays["final_lambdas"], heads = literal.tinting(run, by_confidence)
    for task, (weight, bias) in enumerate(heads):
        arrays[f"final_head{task}/weight"] = weight
        arrays[f"final_head{task}/bias"] = bias
    return arrays


def _inputs(shape: Shape, batches: int, size: int) -> Arrays:
    """A base, experts around it, heads, images, and who saw which of them when."""
    pixels, hidden = int(np.prod(shape.image)), shape.hidden
    base = {
        "stem.weight": torch.randn(hidden, pixels) / pixels**0.5,
        "stem.bias": 0.1 * torch.randn(hidden),
        "norm.weight": 1 + 0.1 * torch.randn(hidden),
        "norm.bias": 0.1 * torch.randn(hidden),
        "mid.weight": torch.randn(hidden, hidden) / hidden**0.5,
        "mid.bias": 0.1 * torch.randn(hidden),
        "out.weight": torch.randn(shape.features, hidden) / hidden**0.5,
    }
    arrays = {f"base/{n}": v for n, v in base.items()}
    for task, classes in enumerate(shape.classes):
        for name, value in base.items():
            moved = value + 0.3 * value.std() * torch.randn_like(value)
            arrays[f"task{task}/{name}"] = moved
        arrays[f"head{task}/weight"] = 3 * torch.randn(classes, shape.features)
        arrays[f"head{task}/bias"] = 0.1 * torch.randn(classes)
    arrays["images"] = torch.randn(shape.tasks, shape.samples, *shape.image)
    rounds = [torch.randperm(shape.tasks) for _ in range(shape.rounds)]
    arrays["order"] = torch.cat(rounds)
    visits = (len(arrays["order"]), batches, size)
    arrays["schedule"] = torch.randint(shape.samples, visits)
    arrays["epochs"] = torch.tensor(shape.rounds)
    return arrays


def _awd_global(shape: Shape) -> Arrays:
    vectors = torch.randn(shape.tasks, 50 * shape.hidden, dtype=torch.float64)
    vectors += torch.randn(50 * shape.hidden, dtype=torch.float64)
    arrays = {"task_vectors": 0.1 * vectors}
    for name in ("alpha", "lr"):
        arrays[name] = torch.tensor(shape.descent[name], dtype=torch.float64)
    found = literal.awd_global(arrays, shape.recorded[-1])
    for step in shape.recorded:
        arrays[f"delta_{step}"], arrays[f"loss_{step}"] = found[step]
    return arrays


def _awd_row(shape: Shape) -> Arrays:
    vectors = torch.randn(shape.tasks, *shape.matrix) + torch.randn(shape.matrix)
    arrays = {"task_vectors": 0.1 * vectors, "iters": torch.tensor(shape.iterations)}
    for name, value in shape.descent.items():
        arrays[name] = torch.tensor(value, dtype=torch.float64)
    for kind in ("row", "none"):
        found = literal.awd_row(arrays, kind, torch.float32)
        arrays[f"common_{kind}"], arrays[f"cos_{kind}"] = found
    return arrays


def _save(folder: Path, name: str, arrays: Arrays) -> None:
    names = {"param_names": np.array(NAMES)} if "images" in arrays else {}
    values = {key: value.numpy() for key, value in arrays.items()}
    np.savez(folder / f"{name}.npz", **names, **values)
