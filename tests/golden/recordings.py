"""Where recordings are, and the parts of a recorded test-time run."""

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

FOLDER = Path(
    os.environ.get("FUSION_PLUGINS_GOLDEN") or Path(__file__).with_name("data")
)


def load(name: str) -> dict[str, Tensor]:
    """The numbers of a recording; skips the test if it is absent."""
    file = FOLDER / f"{name}.npz"
    if not file.is_file():
        pytest.skip(f"no recording {file}; FUSION_PLUGINS_GOLDEN names their folder")
    with np.load(file, allow_pickle=False) as arrays:
        kept = {key: arrays[key] for key in arrays.files}
    return {
        key: torch.from_numpy(np.array(value))
        for key, value in kept.items()
        if value.dtype.kind in "fi"
    }


class TinyEncoder(nn.Module):
    """x (B, 3, 6, 6) -> features, of any width."""

    def __init__(self, inputs: int, width: int, features: int):
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.norm = nn.LayerNorm(width)
        self.mid = nn.Linear(width, width)
        self.out = nn.Linear(width, features, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm(self.stem(images.flatten(1)))
        return self.out(hidden + F.gelu(self.mid(hidden)))

    @classmethod
    def of(cls, state: dict[str, Tensor]) -> "TinyEncoder":
        width, inputs = state["stem.weight"].shape
        module = cls(inputs, width, len(state["out.weight"]))
        module.load_state_dict(state)
        return module


class RecordedBatches:
    """A task's batches as the recorded run saw them; its draw d is its d-th batch."""

    def __init__(self, images: Tensor, batches: Tensor):
        self.images, self.batches = images, batches
        self.count, self.visited = len(images), batches.unique().numpy()

    def batch(self, draws: Iterable[int]) -> Batch:
        chosen = self.batches[list(draws)]
        numbers = torch.arange(len(chosen)).repeat_interleave(chosen.shape[1])
        samples = chosen.flatten()
        return Batch(self.images[samples], samples, numbers)

    def inputs(self, samples: Iterable[int]) -> Tensor:
        return self.images[samples]

    def monitored(self, count: int) -> Tensor:
        return self.images[:count]


@dataclass(frozen=True)
class Recording:
    """One `.npz` of a test-time run; a test that asks for an absent one is skipped."""

    arrays: dict[str, Tensor]

    @classmethod
    def load(cls, name: str) -> "Recording":
        return cls(load(name))

    @property
    def tasks(self) -> int:
        return len(self.arrays["images"])

    @property
    def steps(self) -> int:
        """Visits of each task."""
        return len(self.arrays["order"]) // self.tasks

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return tuple(k[5:] for k in self.arrays if k.startswith("base/"))

    def encoder(self, owner: str) -> TinyEncoder:
        """The weights of `base` or `task<t>` as a module."""
        names = self.parameter_names
        return TinyEncoder.of({n: self.arrays[f"{owner}/{n}"] for n in names})

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
