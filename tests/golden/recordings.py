"""Where recordings are, how near a replay must come, and the parts of a run."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from literal import Run
from packaging.version import Version
from torch import Tensor, nn

from fusion_plugins.adaptation import AdaptationTask, Batch
from fusion_plugins.task_vectors import TaskVectors

SHIPPED = Path(__file__).parent / "data"
FOLDER = Path(os.environ.get("FUSION_PLUGINS_GOLDEN") or SHIPPED)
TOLERANCE = 2e-5  # of values that were learned in float32
# torch 2.5 and 2.6 round float32 sums otherwise than the releases that recordings are from.
OLD_SUMS = Version(torch.__version__) < Version("2.7")


def load(name: str, folder: Path = FOLDER) -> dict[str, Tensor]:
    """A recording's numbers; a test that asks for an absent one is skipped."""
    file = folder / f"{name}.npz"
    if not file.is_file():
        pytest.skip(f"FUSION_PLUGINS_GOLDEN is {folder}, which has no {file.name}")
    with np.load(file, allow_pickle=False) as arrays:
        return {
            key: torch.from_numpy(np.array(arrays[key]))
            for key in arrays.files
            if arrays[key].dtype.kind in "fi"
        }


def assert_recorded(
    got: Tensor,
    want: Tensor,
    literal: Sequence[Tensor],
    tolerance: float = TOLERANCE,
) -> None:
    """A replay and a literal run in float32 give the recorded values.

    `literal` begins with runs in float32 and float64. Where these or further ones part (on
    a kink of |cos|, or at Adam's first step along a slope of almost zero), float32 decides
    at random: a row may be off by three times what one of them is off from float64.
    """
    in_float32, in_float64, *others = (run.double() for run in literal)
    parted = torch.stack([in_float32, *others]) - in_float64
    allowed = (3 * parted.abs().amax(0).amax(-1, keepdim=True)).clamp_min(tolerance)
    for name, found in (("float32", in_float32), ("replay", got.double())):
        error = (found - want.double()).abs()
        assert (error <= allowed).all(), f"{name}: {error.max():.2e} off"


class TinyEncoder(nn.Module):
    """x (B, ...) -> features (B, width of `out`); its sizes are those of `weights`."""

    def __init__(self, weights: dict[str, Tensor]):
        super().__init__()
        hidden, inputs = weights["stem.weight"].shape
        self.stem = nn.Linear(inputs, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.mid = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, len(weights["out.weight"]), bias=False)
        self.load_state_dict(weights)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm(self.stem(images.flatten(1)))
        return self.out(hidden + F.gelu(self.mid(hidden)))


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
    """One `.npz` of a test-time run."""

    arrays: dict[str, Tensor]

    @classmethod
    def load(cls, name: str, folder: Path = FOLDER) -> "Recording":
        return cls(load(name, folder))

    @property
    def tasks(self) -> int:
        return len(self.arrays["images"])

    @property
    def steps(self) -> int:
        """Visits of each task."""
        return len(self.arrays["order"]) // self.tasks

    @property
    def batches_per_visit(self) -> int:
        return self.arrays["schedule"].shape[1]

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return tuple(k[5:] for k in self.arrays if k.startswith("base/"))

    def encoder(self, owner: str) -> TinyEncoder:
        """The weights of `base` or `task<t>` as a module."""
        names = self.parameter_names
        return TinyEncoder({n: self.arrays[f"{owner}/{n}"] for n in names})

    def literal(self) -> list[Run]:
        """The run as plain loops: in float32, float64, and nudged by float32's rounding."""
        names = self.parameter_names
        runs = [Run(self.arrays, names, d) for d in (torch.float32, torch.float64)]
        nudged = [nudge(self.arrays, seed) for seed in range(3)]
        return runs + [Run(arrays, names, torch.float64) for arrays in nudged]

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


def nudge(arrays: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The arrays with noise as large as float32's rounding; integers stay."""
    noise = torch.Generator().manual_seed(seed)
    return {
        key: (
            value.double() * (1 + 2**-24 * torch.randn(value.shape, generator=noise))
            if value.is_floating_point()
            else value
        )
        for key, value in arrays.items()
    }
