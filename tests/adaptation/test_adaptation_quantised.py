"""Task vectors in 8 and 4 bits: rounding, merging, gradients, and what they put off."""

import shutil
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import nn
from toy_engine import Normed, Plain, Tied, models

from fusion_plugins.adaptation import MergedWeights, quantised, weights
from fusion_plugins.adaptation.layers import storage_error
from fusion_plugins.adaptation.quantised import Kernels, QuantisedStack
from fusion_plugins.task_vectors import TaskVectors

LIMITS = {"int8": 127, "int4": 7}


class Shapes(nn.Module):
    """Rows that 64 divides and others, a kernel, a scalar, and a counter."""

    def __init__(self):
        super().__init__()
        shapes = {"wide": (6, 128), "odd": (5, 9), "vector": (64,), "one": ()}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.register_buffer("count", torch.tensor([3, 5]))


def pool(dtype=torch.float32, tasks: int = 3) -> tuple[nn.Module, dict[str, nn.Module]]:
    """The last task moved nothing, and every task left some entries and rows alone."""
    torch.manual_seed(0)
    base, experts = Shapes().to(dtype), {}
    for task in range(tasks):
        experts[f"task{task}"] = expert = deepcopy(base)
        for value in expert.parameters():
            step = (
                torch.randn_like(value) * 10.0**-task * (torch.rand_like(value) > 0.3)
            )
            if value.dim() > 1:
                step[1] = 0
            value.data += 0 * step if 0 < task == tasks - 1 else step
    return base, experts


def stored(storage: str, base: nn.Module, experts: dict[str, nn.Module]):
    """The merge of a copy of the base, and its exact task vectors by name."""
    kept = MergedWeights(
        deepcopy(base), TaskVectors.from_modules(base, experts), storage_dtype=storage
    )
    start, wide = dict(base.named_parameters()), torch.promote_types
    dtype = wide(base.wide.dtype, torch.float32)
    exact = {
        name: torch.stack(
            [
                e.get_parameter(name).to(dtype) - value.to(dtype)
                for e in experts.values()
            ]
        ).detach()
        for name, value in start.items()
    }
    return kept, exact


def dequantised(kept: MergedWeights) -> dict[str, torch.Tensor]:
    """What the merge holds as task vectors, in the tensors' shapes."""
    return {
        layer.key: torch.cat([layer._values(part) for part in layer._parts()], 1).view(
            len(kept.tasks), *layer.target.shape
        )
        for layer in kept._layers
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("storage", LIMITS)
def test_no_entry_is_off_by_more_than_half_a_step(storage, tasks, dtype):
    kept, exact = stored(storage, *pool(dtype, tasks))
    for name, values in dequantised(kept).items():
        row = (
            exact[name][0, 0].numel()
            if exact[name].dim() > 2
            else exact[name][0].numel()
        )
        four = storage == "int4" and row % 64 == 0
        group, limit = (64, 7) if four else (row, 127)
        want = exact[name].view(tasks, -1, group)
        half = want.abs().amax(-1, keepdim=True) / limit / 2
        got = values.view_as(want)
        assert ((got - want).abs() <= half * (1 + 1e-5)).all(), name
        assert (got[want == 0] == 0).all() and (row == 1 or (want == 0).any())
        assert ((got - want).abs() > 0).any() or row == 1
    task_bytes = sum(layer.stack.nbytes for layer in kept._layers)
    assert task_bytes < 0.6 * sum(v.float().nbytes for v in exact.values())


@pytest.mark.parametrize("tasks", [1, 3])
def test_task_vectors_of_zeros_stay_zero(tasks):
    base, _ = pool()
    kept, _ = stored("int4", base, {f"task{t}": deepcopy(base) for t in range(tasks)})
    kept.train_moved_layers()
    assert not any(p.requires_grad for p in kept.module.parameters())
    kept.materialise(torch.ones(tasks, len(kept.keys)))
    for name, value in base.state_dict().items():
        assert torch.equal(kept.module.state_dict()[name], value)
    assert kept.norms() == [0] * tasks
    assert storage_error(kept._layers, torch.ones(tasks, len(kept.keys))) == (0, 0)


def plain(kept: MergedWeights, monkeypatch) -> None:
    monkeypatch.setattr(quantised, "_READ", 1)  # one group at a time


def fused(kept: MergedWeights, monkeypatch) -> None:
    kernels = Kernels(quantised.merge, quantised.inner)
    for layer in kept._layers:
        layer.kernels = kernels


@pytest.mark.parametrize("way", [plain, fused])
@pytest.mark.parametrize("storage", LIMITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_merge_and_gradient_are_those_of_the_dequantised_vectors(
    monkeypatch, storage, dtype, way: Callable
):
    base, experts = pool(dtype)
    kept, _ = stored(storage, base, experts)
    way(kept, monkeypatch)
    vectors = dequantised(kept)
    coefficients = torch.rand(3, len(kept.keys), dtype=dtype, requires_grad=True)
    kept.train_moved_layers()
    kept.materialise(coefficients)
    generator = torch.Generator().manual_seed(1)
    loss, reference = torch.zeros((), dtype=dtype), torch.zeros((), dtype=dtype)
    for column, key in enumerate(kept.keys):
        weights = coefficients[:, column].view(3, *[1] * (vectors[key].dim() - 1))
        want = base.state_dict()[key] + (weights * vectors[key]).sum(0)
        got = kept.module.get_parameter(key)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6, check_stride=False)
        probe = torch.randn(got.shape, generator=generator, dtype=dtype)
        loss, reference = loss + (got * probe).sum(), reference + (want * probe).sum()
    loss.backward()
    reference.backward()
    torch.testing.assert_close(
        kept.coefficient_gradient(), coefficients.grad, rtol=1e-5, atol=1e-5
    )
    assert torch.equal(kept.module.count, base.count)


@pytest.mark.parametrize("kind", [Plain, Tied, Normed])
@pytest.mark.parametrize("storage", LIMITS)
def test_the_error_of_the_merge_is_exact(kind, storage):
    base, experts = models(kind)
    coefficients = torch.linspace(0, 0.5, 3)[:, None]
    merged = {}
    for dtype in ("float32", storage):
        kept = MergedWeights(
            deepcopy(base),
            TaskVectors.from_modules(base, experts),
            storage_dtype=dtype,
        )
        weights = coefficients.expand(3, len(kept.keys))
        state = kept.materialise(weights).state_dict()
        merged[dtype] = torch.cat([state[key].double().flatten() for key in kept.keys])
        error = storage_error(kept._layers, weights)
        assert (error is None) == (dtype == "float32")
    start = torch.cat([base.state_dict()[key].double().flatten() for key in kept.keys])
    wrong = (merged[storage] - merged["float32"]).norm()
    change = (merged[storage] - start).norm()
    want = (wrong / merged[storage].norm()).item(), (wrong / change).item()
    assert error == pytest.approx(want, rel=1e-3)
    assert f"Task vectors in {storage} put the merged" in kept.storage_notes(weights)[0]
    assert wrong > 0


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.parametrize("storage", ["int8"])
def test_compiled_kernels_give_what_plain_reading_gives(monkeypatch, storage):
    """The real compiler, on matrices that are wide enough for it."""
    monkeypatch.setattr(quantised, "_FUSED", 2)
    base, experts = pool()
    reference, _ = stored(storage, base, experts)
    monkeypatch.setattr(weights, "_COMPILED_FROM", 0)
    kept, _ = stored(storage, base, experts)
    assert sum(layer.kernels is not None for layer in kept._layers) >= 2
    coefficients = torch.rand(3, len(kept.keys))
    states = [k.materialise(coefficients).state_dict() for k in (kept, reference)]
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-6, atol=1e-6)
    gradients = []
    for one in (kept, reference):
        for layer in one._layers:
            layer.target.grad = torch.ones_like(layer.target)
        gradients.append(one.coefficient_gradient())
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-4)


def test_without_a_compiler_task_vectors_are_read_plainly(monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("no C++ compiler\nand a long trace")

    monkeypatch.setattr(weights, "_COMPILED_FROM", 0)
    monkeypatch.setattr(quantised, "_FUSED", 2)
    monkeypatch.setattr(Kernels, "compiled", lambda: Kernels(broken, broken))
    kept, _ = stored("int8", *pool())
    assert all(layer.kernels is None for layer in kept._layers)
    assert "read without compiled kernels: no C++ compiler" in caplog.text
    kept.materialise(torch.ones(3, len(kept.keys)))


def test_a_stack_says_what_it_takes():
    stack = QuantisedStack.empty(20, (1024, 4096), torch.uint8)
    assert stack.shape == (20, 2**22) and stack.width == 64
    assert stack.nbytes == 20 * (2**21 + 4 * 2**16)  # half a byte, a scale per 64
    stack = QuantisedStack.empty(20, (1024, 4096), torch.int8)
    assert stack.nbytes == 20 * (2**22 + 4 * 1024)
