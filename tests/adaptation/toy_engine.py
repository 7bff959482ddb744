"""Small modules, and an engine over them, for tests of the test-time engine."""

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
import torch.nn.functional as F
from lightning import Fabric
from torch import Tensor, nn
from torch.utils.data import Dataset

from fusion_plugins.adamerging.functional import (
    marginal_negentropy,
    prediction_entropy,
)
from fusion_plugins.adaptation import (
    AdaptationTask,
    Coefficients,
    CollapseGuard,
    Engine,
    JointSchedule,
    KeptSamples,
    Losses,
    MergedWeights,
    Predictor,
    SampleOrder,
    StreamedSamples,
    TaskSamples,
    expert_predictions,
)
from fusion_plugins.task_vectors import TaskVectors

TASKS, WIDTH, FEATURES = 3, 10, 6


class Plain(nn.Module):
    """Two layers with a norm, and a parameter that no forward uses."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(WIDTH, 8)
        self.norm = nn.LayerNorm(8)
        self.unused = nn.Parameter(torch.randn(5))
        self.out = nn.Linear(8, FEATURES, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(F.gelu(self.norm(self.stem(inputs))))

    @staticmethod
    def samples(count: int) -> Tensor:
        return torch.randn(count, WIDTH)


class Normed(Plain):
    """With batch norm, whose running statistics are float buffers."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        nn.init.normal_(self.norm.running_mean)


class Tied(nn.Module):
    """Token ids in; the embedding is the output layer's weight as well."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(FEATURES, 8)
        self.mid = nn.Linear(8, 8)
        self.out = nn.Linear(8, FEATURES)
        self.out.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(F.gelu(self.mid(self.embedding(ids).mean(dim=1))))

    @staticmethod
    def samples(count: int) -> Tensor:
        return torch.randint(0, FEATURES, (count, 4))


class Rows(Dataset):
    """A tensor as a dataset; counts how often a sample is read."""

    def __init__(self, values: Tensor):
        self.values, self.reads = values, []

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Tensor:
        self.reads.append(index)
        return self.values[index]


def models(kind: type[nn.Module], dtype=torch.float32, seed: int = 0, scale=0.3):
    """A base, and experts that are the base plus noise in every floating tensor."""
    torch.manual_seed(seed)
    base = kind().to(dtype)
    experts = {}
    for task in range(TASKS):
        experts[f"task{task}"] = expert = deepcopy(base)
        state = expert.state_dict()
        for name, value in state.items():
            # Adding to a tied tensor twice is fine: it stays tied.
            if value.is_floating_point():
                step = scale * torch.randn_like(value)
                value.add_(step.abs() if name.endswith("var") else step)
    return base, experts


def sources(
    kind: type[nn.Module],
    dtype=torch.float32,
    samples: int = 40,
    batch_size: int = 8,
    fabric: Fabric | None = None,
    keep_on: str = "cpu",
) -> dict[str, KeptSamples | StreamedSamples]:
    """Unlabelled batches per task; task t has samples + t samples."""
    torch.manual_seed(1)
    order = SampleOrder(0, batch_size)
    rank, world = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    result = {}
    for task in range(TASKS):
        values = kind.samples(samples + task)
        values = values.to(dtype) if values.is_floating_point() else values
        data = TaskSamples(
            f"task{task}", Rows(values), order, _same, "cpu", rank, world
        )
        source = StreamedSamples if keep_on == "none" else KeptSamples
        result[f"task{task}"] = source(data, np.empty(0, dtype=int))
    return result


def _same(stored: Tensor) -> Tensor:
    return stored


def heads(dtype=torch.float32) -> dict[str, nn.Linear]:
    """A linear head per task, of 4, 5 and 6 classes."""
    torch.manual_seed(2)
    return {
        f"task{t}": nn.Linear(FEATURES, 4 + t).to(dtype).requires_grad_(False)
        for t in range(TASKS)
    }


def entropy(task: str, logits: Tensor, batch) -> Losses:
    values = prediction_entropy(logits)
    return Losses(values)


def information(task: str, logits: Tensor, batch) -> Losses:
    """With a term of whole draws."""
    shares = logits.softmax(-1)
    return Losses(prediction_entropy(logits), None, shares, marginal_negentropy)


def cpu_fabric(**kwargs) -> Fabric:
    return Fabric(accelerator="cpu", devices=1, **kwargs)


def make_predictor(
    kind: type[nn.Module] = Plain,
    *,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 8,
    storage: str | None = None,
    experts: dict[str, nn.Module] | None = None,
    fabric: Fabric | None = None,
) -> Predictor:
    """Seeded toys; everything a test does not name is the same."""
    base, noisy = models(kind, dtype)
    fabric = fabric or cpu_fabric()
    weights = MergedWeights(
        deepcopy(base),
        TaskVectors.from_modules(base, experts or noisy),
        storage_dtype=storage or str(dtype).removeprefix("torch."),
    )
    data, head = (
        sources(kind, dtype, batch_size=batch_size, fabric=fabric),
        heads(dtype),
    )
    tasks = [AdaptationTask(t, data[t], head[t]) for t in data]
    return Predictor(weights, tasks, lambda module, inputs: module(inputs), fabric)


def make_guard(predictor: Predictor, samples: int = 40, **options) -> CollapseGuard:
    """A guard that knows the experts' predictions."""
    experts = expert_predictions(predictor, samples)
    return CollapseGuard(experts, samples=samples, **options)


def make_engine(
    kind: type[nn.Module] = Plain,
    *,
    predictor: Predictor | None = None,
    dtype: torch.dtype = torch.float32,
    steps: int = 10,
    batches_per_task: int = 2,
    lr: float = 1e-2,
    granularity: str = "layer",
    clamp: bool = True,
    mixing: Tensor | None = None,
    own: Sequence[nn.Parameter] = (),
    batch_size: int = 8,
    storage: str | None = None,
    experts: dict[str, nn.Module] | None = None,
    fabric: Fabric | None = None,
    **options,
) -> Engine:
    """An engine over seeded toys; `own` are parameters of tasks."""
    if predictor is None:
        predictor = make_predictor(
            kind,
            dtype=dtype,
            batch_size=batch_size,
            storage=storage,
            experts=experts,
            fabric=fabric,
        )
    coefficients = Coefficients(
        TASKS, len(predictor.weights.keys), granularity, 0.3, clamp, mixing, dtype
    )
    learned = [*coefficients.parameters(), *own]
    settings = {
        "loss": entropy,
        "schedule": JointSchedule(TASKS, steps, batches_per_task),
        "optimizer": torch.optim.Adam(learned, lr=lr),
    }
    return Engine(predictor, coefficients, **(settings | options))


def learned(engine: Engine) -> Tensor:
    """Run, and give the raw coefficients."""
    engine.run()
    return engine.coefficients.raw.detach().clone()
