"""A merge that is not finite is refused, by name, and leaves nothing behind."""

import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fusion_bench.method import SimpleAverageAlgorithm, TaskArithmeticAlgorithm
from lightning import Fabric
from test_awd_algorithm import OPTIONS, GenericTaskArithmetic, make_pool
from torch import nn

from fusion_plugins import AWDAlgorithm
from fusion_plugins.awd.base_method import check_numbers
from fusion_plugins.task_vectors import require_finite


def run(folder: Path, pool, **options):
    method = AWDAlgorithm(**(OPTIONS | options))
    method.fabric = Fabric(accelerator="cpu", devices=1)
    method._program = SimpleNamespace(path={"log_dir": str(folder)})
    return method.run(pool)


def written(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name != ".lock"]


def half(size: float, base_too: bool = True) -> dict:
    pool = make_pool()
    for name, model in pool.items():
        model[0].weight.data.fill_(size if name != "_pretrained_" else 1.0)
        if base_too or name != "_pretrained_":
            model.half()
    return pool


ADDED_UP = TaskArithmeticAlgorithm(1.0)
NOT_FINITE = {
    "float16 base": (
        {"pool": half(6e4), "base": ADDED_UP},
        "'0.weight' overflows float16, .* Give the base in bfloat16 or float32",
    ),
    "float16 base, another method": (
        {"pool": half(6e4), "base": GenericTaskArithmetic(1.0)},
        "tensor '0.weight' holds NaN or Inf in torch.float16. Use a smaller scaling",
    ),
    "nan scaling": (
        {"base": TaskArithmeticAlgorithm(float("nan"))},
        "coefficients of '0.weight' hold NaN or Inf.* Check the scaling",
    ),
    "inf scaling": (
        {"base": TaskArithmeticAlgorithm(float("inf"))},
        "coefficients of '0.weight' hold NaN or Inf.* Check the scaling",
    ),
    "nan scaling, another method": (
        {"base": GenericTaskArithmetic(float("nan"))},
        "tensor '0.weight' holds NaN or Inf in torch.float32. Use a smaller scaling",
    ),
    "diverged rows": (
        {"lr": 1e12, "granularity": "row", "iterations": 50},
        "AWD diverged: lr=1e[+]12 is too long a step for granularity 'row'. Use sc",
    ),
    "diverged to nan": (
        {"lr": 1e300, "granularity": "row", "iterations": 50},
        "AWD diverged: lr=1e[+]300 is too long a step for granularity 'row'. Use sc",
    ),
    "diverged model": (
        {"lr": 1e12, "iterations": 50, "alpha": 1.0},
        "AWD diverged: lr=1e[+]12 is too long a step for granularity 'model'. Use s",
    ),
}


@pytest.mark.parametrize("kind", NOT_FINITE)
def test_what_is_not_finite_is_refused_and_not_written(kind, tmp_path):
    options, message = NOT_FINITE[kind]
    with pytest.raises(ValueError, match=message) as error:
        run(tmp_path / "log", **({"pool": make_pool()} | options))
    assert "\n" not in str(error.value) and written(tmp_path / "log") == []


def test_float16_experts_of_a_float32_base_are_added_up(tmp_path):
    merged = run(tmp_path / "log", half(6e4, base_too=False), base=ADDED_UP, alpha=0.0)
    assert merged[0].weight.min() > torch.finfo(torch.float16).max
    assert "awd.json" in written(tmp_path / "log")


def test_a_simple_average_in_float16_is_right(tmp_path):
    merged = run(tmp_path / "log", half(3.0), base=SimpleAverageAlgorithm(), lr=1e-9)
    assert torch.equal(merged[0].weight, torch.full_like(merged[0].weight, 3.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_large_finite_numbers_are_finite(dtype):
    layer = torch.nn.Linear(3, 3).to(dtype)
    layer.weight.data.fill_(torch.finfo(torch.bfloat16).max)
    require_finite(layer, "")
    layer.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="'weight' holds NaN or Inf in torch"):
        require_finite(layer, "")


def test_a_mask_of_infinities_may_be_kept():
    models = {name: nn.Linear(2, 2) for name in ("_pretrained_", "a", "b")}
    for model in models.values():
        model.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    with pytest.raises(ValueError, match=r"holds 1 NaN .* base with keep=\['mask'\]"):
        AWDAlgorithm(iterations=1).run(models)
    merged = AWDAlgorithm(iterations=1, keep=["mask"]).run(models)
    assert torch.equal(merged.mask, models["_pretrained_"].mask)


@pytest.mark.parametrize("value", ["0.3", math.nan, math.inf, True, [0.3], {}])
def test_no_number_for_one_of_the_base_method_is_refused_before_the_walk(value):
    target = "fusion_bench.method.TaskArithmeticAlgorithm"
    method = AWDAlgorithm(base={"_target_": target, "scaling_factor": value})
    models = {"_pretrained_": nn.Linear(2, 2), "a": nn.Linear(2, 2)}
    with pytest.raises(
        ValueError, match=re.escape(f"scaling_factor is {value!r}, expected a num")
    ):
        method.run(models)


def test_a_list_of_numbers_may_be_what_a_method_wants():
    target = "fusion_bench.method.WeightedAverageAlgorithm"
    config = {"_target_": target, "normalize": True, "weights": [0.3, 0.7]}
    check_numbers(config)
    config["weights"] = "0.3"
    with pytest.raises(ValueError, match="weights is '0.3', expected a number"):
        check_numbers(config)
