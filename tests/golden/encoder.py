"""The tiny encoder of the recorded test-time runs, and a recording's parts."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion_plugins.adaptation import AdaptationTask, Batch
from fusion_plugins.task_vectors import TaskVectors

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(
    os.environ.get("FUSION_PLUGINS_GOLDEN") or REPOSITORY.parent / "shared" / "golden"
)


class TinyEncoder(nn.Module):
    """x (B, 3, 6, 6) -> features (B, 16)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(108, 24)
        self.norm = nn.LayerNorm(24)
        self.mid = nn.Linear(24, 24)
        self.out = nn.Linear(24, 16, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm(self.stem(images.flatten(1)))
        return self.out(hidden + F.gelu(self.mid(hidden)))


class RecordedBatches:
    """A task's batches as the recorded run saw them; its draw d is its d-th batch."""

    def __init__(self, images: Tensor, batches: Tensor):
        self.images, self.batches = images, batches

    def batch(self, draws: Iterable[int]) -> Batch:
        chosen = self.batches[list(draws)]
        numbers = torch.arange(len(chosen)).repeat_interleave(chosen.shape[1])
        samples = chosen.flatten()
        return Batch(self.images[samples], samples, numbers)

    def monitored(self, count: int) -> Tensor:
        return self.images[:count]


@dataclass(frozen=True)
class Recording:
    """One `.npz` of a test-time run; a test that asks for an absent one is skipped."""

    arrays: dict[str, Tensor]
    parameter_names: tuple[str, ...]

    @classmethod
    def load(cls, name: str) -> "Recording":
        file = FOLDER / f"{name}.npz"
        if not file.is_file():
            pytest.skip(f"no recording {file}; set FUSION_PLUGINS_GOLDEN")
        with np.load(file, allow_pickle=False) as arrays:
            names = tuple(str(n) for n in arrays["param_names"])
            tensors = {
                key: torch.from_numpy(np.array(arrays[key]))
                for key in arrays.files
                if arrays[key].dtype.kind in "fi"
            }
        return cls(tensors, names)

    @property
    def tasks(self) -> int:
        return len(self.arrays["images"])

    def encoder(self, owner: str) -> TinyEncoder:
        """The weights of `base` or `task<t>` as a module."""
        names = self.parameter_names
        module = TinyEncoder()
        module.load_state_dict({n: self.arrays[f"{owner}/{n}"] for n in names})
        return module

    def task_vectors(self) -> TaskVectors:
        experts = {f"task{t}": self.encoder(f"task{t}") for t in range(self.tasks)}
        return TaskVectors.from_modules(self.encoder("base"), experts)

    def batches(self, task: int) -> RecordedBatches:
        visits = self.arrays["order"] == task
        batches = self.arrays["schedule"][visits].flatten(0, 1)
        return RecordedBatches(self.arrays["images"][task], batches)

    def head(self, task: int, kind: str = "head") -> nn.Linear:
        """The linear layer on features of unit length (`kind`: head or final_head)."""
        weight = self.arrays[f"{kind}{task}/weight"]
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict(
            {"weight": weight, "bias": self.arrays[f"{kind}{task}/bias"]}
        )
        return layer.requires_grad_(False)

    def adaptation_tasks(self) -> list[AdaptationTask]:
        """The tasks with frozen heads, as the engine takes them."""
        return [
            AdaptationTask(f"task{t}", self.batches(t), on_unit_features(self.head(t)))
            for t in range(self.tasks)
        ]


def on_unit_features(head: nn.Module) -> Callable[[Tensor], Tensor]:
    """The head, fed with features scaled to length 1."""
    return lambda features: head(features / features.norm(dim=-1, keepdim=True))
