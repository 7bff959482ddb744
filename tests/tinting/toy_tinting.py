"""A toy network with blocks, its pool adapter, and watched runs of the method."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion_plugins import TintedModel, TintingAlgorithm
from fusion_plugins.adaptation import Callback, StepReport, Training
from fusion_plugins.merged.heads import ClassificationHead
from fusion_plugins.pools import PoolAdapter, as_modelpool
from fusion_plugins.tinting.objective import TintedLearner, TintingObjective

WIDTH, HIDDEN, FEATURES = 10, 8, 6
TASKS = {"aa": 3, "bb": 4, "cc": 5}  # classes
BLOCK = "blocks.1"
QUIET = {"guard_every": 0, "num_workers": 0, "save_model": False, "seed": 0}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.mix = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + F.gelu(self.mix(self.norm(inputs)))


class ToyNet(nn.Module):
    """Rows (B, WIDTH) -> hidden states (B, HIDDEN)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(WIDTH, HIDDEN)
        self.blocks = nn.ModuleList([Block(), Block(), Block()])

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.stem(inputs)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


class ToyAdapter(PoolAdapter):
    """Rows as samples; a projection outside the merged module; heads without bias."""

    outer_layers = ("projection",)

    def prepare(self, device) -> None:
        torch.manual_seed(7)
        self._outer = nn.Module()
        self._outer.projection = self.projection()
        self._heads = {
            task: ClassificationHead(3 * torch.randn(classes, FEATURES))
            for task, classes in TASKS.items()
        }

    def projection(self) -> nn.Linear:
        """The frozen one, whatever a run has put in its place."""
        torch.manual_seed(7)
        return nn.Linear(HIDDEN, FEATURES, bias=False).requires_grad_(False)

    @property
    def outer_module(self) -> nn.Module:
        return self._outer

    def check_datasets(self, split: str) -> None: ...

    def dataset(self, task: str, split: str) -> list[Tensor]:
        rows = 40 + list(TASKS).index(task)
        generator = torch.Generator().manual_seed(rows)
        return list(torch.randn(rows, WIDTH, generator=generator))

    def encode(self, sample: Tensor) -> Tensor:
        return sample

    def decode(self, stored: Tensor) -> Tensor:
        return stored

    def features(self, module: nn.Module, inputs: Tensor) -> Tensor:
        features = self._outer.projection(module(inputs))
        return features / features.norm(dim=-1, keepdim=True)

    def heads(self) -> dict[str, ClassificationHead]:
        return self._heads


def toy_pool() -> dict[str, nn.Module]:
    """A base, and experts that are the base plus noise."""
    torch.manual_seed(0)
    pool = {"_pretrained_": ToyNet()}
    for task in TASKS:
        pool[task] = deepcopy(pool["_pretrained_"])
        for parameter in pool[task].parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return pool


class Watch(Callback):
    """What is learned, before the first and after every step."""

    def __init__(self, algorithm: WatchedTinting):
        self.algorithm = algorithm
        self.learner: TintedLearner | None = None
        self.states: list[dict[str, Tensor]] = []
        self.reports: list[StepReport] = []
        self.engine: Training | None = None
        self.stop_after: int | None = None

    def on_start(self, engine: Training) -> None:
        self.engine = engine
        self.states.append(self._state())

    def on_step(self, engine: Training, report: StepReport) -> None:
        self.states.append(self._state())
        self.reports.append(report)
        if engine.step == self.stop_after:
            raise KeyboardInterrupt

    def _state(self) -> dict[str, Tensor]:
        state = {"coefficients": self.engine.coefficients.raw}
        for site, layers in self.learner.tints.layers.items():
            for task, layer in layers.items():
                for name, value in layer.named_parameters():
                    state[f"{task}/{site}/{name}"] = value
        return {name: value.detach().clone() for name, value in state.items()}

    def moved(self, step: int) -> set[str]:
        """Owners (``coefficients`` or a task) of what this step changed."""
        before, after = self.states[step], self.states[step + 1]
        changed = [n for n in before if not torch.equal(before[n], after[n])]
        return {name.split("/")[0] for name in changed}

    def tints(self, when: int) -> dict[str, Tensor]:
        return {n: v for n, v in self.states[when].items() if "/" in n}

    def state(self) -> dict:
        return {}

    def load_state(self, state: dict) -> None: ...


@dataclass(frozen=True)
class WatchedObjective(TintingObjective):
    watch: Watch | None = None

    def _learner(self, *arguments) -> TintedLearner:
        self.watch.learner = learner = super()._learner(*arguments)
        return replace(learner, callbacks=[*learner.callbacks, self.watch])


class WatchedTinting(TintingAlgorithm):
    """Keeps a Watch of its run."""

    def __init__(self, **options):
        super().__init__(**options)
        self.watch = Watch(self)

    def run(self, modelpool, adapter):
        self.adapter = adapter
        return super().run(modelpool, adapter)

    def make_objective(self) -> WatchedObjective:
        plain = super().make_objective()
        return WatchedObjective(
            plain.options, plain.rounds, plain.profile, watch=self.watch
        )


def make(**options) -> WatchedTinting:
    return WatchedTinting(**(QUIET | {"rounds": 4, "batch_size": 8} | options))


def tint(algorithm: TintingAlgorithm, pool=None) -> TintedModel:
    """Run on the toy pool."""
    modelpool = as_modelpool(toy_pool() if pool is None else pool)
    return algorithm.run(modelpool, ToyAdapter(modelpool))


def watched(**options) -> tuple[TintedModel, Watch]:
    algorithm = make(**options)
    model = tint(algorithm)
    return model, algorithm.watch
