"""Small models with every kind of tensor a checkpoint holds."""

from collections.abc import Iterable
from copy import deepcopy

import torch
from torch import Tensor, nn

from fusion_plugins.task_vectors import TaskVectors

TASKS = ("red", "green", "blue")


class Toy(nn.Module):
    """Matrix, 4-D convolution, vectors, a scalar, an empty tensor, counters, a mask."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 2)
        self.norm = nn.BatchNorm1d(5)
        self.linear = nn.Linear(5, 4)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.empty(0, 4))
        self.register_buffer("mask", torch.tensor([True, False]))


class Tied(nn.Module):
    """Embedding and output layer share one matrix."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


def shifted(model: nn.Module, seed: int, size: float = 0.1) -> nn.Module:
    """A copy with every float tensor moved and every counter changed."""
    generator = torch.Generator().manual_seed(seed)
    model, seen = deepcopy(model), set()
    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.data_ptr() in seen and tensor.numel():
            continue
        seen.add(tensor.data_ptr())
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.data.add_((size * noise).to(tensor))
        elif tensor.dtype == torch.bool:
            tensor.logical_not_()
        else:
            tensor.add_(seed + 1)
    return model


def family(kind: type[nn.Module] = Toy, tasks: Iterable[str] = TASKS):
    """A base and one expert per task."""
    torch.manual_seed(0)
    base = kind()
    return base, {task: shifted(base, seed) for seed, task in enumerate(tasks)}


def vectors(base: nn.Module, experts: dict, key: str) -> Tensor:
    """Task vectors of one tensor in float64, shape (tasks, ...)."""
    start = base.state_dict()[key].double()
    return torch.stack([e.state_dict()[key].double() - start for e in experts.values()])


def from_family(kind: type[nn.Module] = Toy, keep=()) -> TaskVectors:
    base, experts = family(kind)
    return TaskVectors.from_modules(base, experts, keep)
