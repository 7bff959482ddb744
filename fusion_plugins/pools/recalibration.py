"""Re-estimate a merged model's batch normalisation statistics on unlabelled samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from typing import Any, cast

import numpy as np
import torch
from fusion_bench import BaseModelPool
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..common.options import require_integer
from ..common.order import SampleOrder
from ..merged import sites
from ..merged.model import TintedModel
from ..merged.statistics import batch_norms
from .family import adapter_for

# Tasks -> batches that mix them evenly.
Batches = Callable[[Sequence[str]], Iterator[Tensor]]
_AT_ONCE = 128  # samples per batch; its statistics are what is averaged


def recalibrate(
    model: nn.Module,
    modelpool: BaseModelPool,
    per_task: bool = True,
    samples: int = 512,
    data: str = "test",
    seed: int = 0,
    adapter: Any = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Give a merged model the running statistics of its own activations.

    Works on the result of any method; one with the experts' heads in place, as the
    methods return it and :func:`fusion_plugins.pools.task_heads.with_task_heads` makes it.

    Args:
        model: The merged model; changed in place.
        modelpool: Where the samples are.
        per_task: One set of statistics for every task, chosen with the task; else one for
            all, from batches that mix the tasks.
        samples: Per task; unlabelled.
        data: ``test``, ``val`` or ``train``.
        seed: Of the choice of samples.
        adapter: How to get and run samples, prepared; found by the pool's class.
        device: Where to run; the model goes back to where it was.

    Returns:
        `model`, or a tinted model if statistics are per task and `model` was not one. A
        model without batch normalisation is returned as it is.

    Raises:
        ValueError: `samples` is no number of samples, or `per_task` is false for a model
            whose inner layers differ between tasks.
        TypeError: No adapter knows the pool.
    """
    require_integer("samples", samples, 1)
    trunk = model.trunk if isinstance(model, TintedModel) else model
    if not batch_norms(trunk):
        return model
    if adapter is None:
        adapter = adapter_for(modelpool)
        adapter.check_datasets(data)
        adapter.prepare(torch.device(device))
    batches = _batches_of(adapter, data, samples, seed, torch.device(device))
    home = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    model.to(device).eval()
    try:
        if per_task:
            model = _estimate_per_task(model, adapter, batches)
        else:
            _estimate_shared(model, adapter, batches)
    finally:
        for module, training in modes:
            module.training = training
    return model.to(home)


def _batches_of(
    adapter: Any, data: str, samples: int, seed: int, device: torch.device
) -> Batches:
    """Preprocessed samples, the same ones for the same seed."""
    order = SampleOrder(seed, _AT_ONCE)
    datasets = {task: adapter.dataset(task, data) for task in adapter.tasks}
    chosen = {
        task: order.subset(f"statistics of {task}", len(dataset), samples)
        for task, dataset in datasets.items()
    }

    def inputs(task: str, indices: np.ndarray) -> Tensor:
        encoded = [adapter.encode(datasets[task][i]) for i in indices.tolist()]
        return adapter.decode(torch.stack(encoded).to(device))

    def batches(tasks: Sequence[str]) -> Iterator[Tensor]:
        most = max(len(chosen[task]) for task in tasks)
        count = -(-most * len(tasks) // _AT_ONCE)
        split = {t: np.array_split(chosen[t], count) for t in tasks}
        for number in range(count):
            found = {t: split[t][number] for t in tasks if len(split[t][number])}
            yield torch.cat([inputs(t, indices) for t, indices in found.items()])

    return batches


def _estimate_shared(model: nn.Module, adapter: Any, batches: Batches) -> None:
    trunk = model
    if isinstance(model, TintedModel):
        trunk, head = model.trunk, adapter.head_site(model.trunk)
        inner = [s for s in model.sites if s not in (head, sites.HEAD)]
        if inner:
            raise ValueError(
                f"batch_norm: the layers {inner} differ between the tasks, so there is no"
                " one set of statistics. Use batch_norm=recalibrated_per_task."
            )

    def run() -> None:
        for inputs in batches(adapter.tasks):
            adapter.features(trunk, inputs)

    estimate(batch_norms(trunk), run)


def _estimate_per_task(model: nn.Module, adapter: Any, batches: Batches) -> TintedModel:
    tinted = model if isinstance(model, TintedModel) else None
    trunk = model if tinted is None else tinted.trunk
    shared = _outside_switches(trunk)
    copies: dict[str, dict[str, nn.Module]] = {name: {} for name in shared}
    for task in adapter.tasks:
        layers = shared | _inside_switches(trunk, task)

        def run(task: str = task) -> None:
            for inputs in batches([task]):
                adapter.features(trunk, inputs)

        with nullcontext() if tinted is None else tinted.for_task(task):
            estimate(layers, run, f"task '{task}'")
        for name, layer in shared.items():
            copies[name][task] = deepcopy(layer)
    if tinted is None:
        return TintedModel(model, copies)
    for name, own in copies.items():
        tinted.add_site(name, own)
    return tinted


def _switches(trunk: nn.Module) -> dict[str, sites.TaskSwitch]:
    return {n: m for n, m in trunk.named_modules() if isinstance(m, sites.TaskSwitch)}


def _outside_switches(trunk: nn.Module) -> dict[str, _BatchNorm]:
    inside = tuple(f"{name}." for name in _switches(trunk))
    found = batch_norms(trunk)
    return {n: layer for n, layer in found.items() if not n.startswith(inside)}


def _inside_switches(trunk: nn.Module, task: str) -> dict[str, _BatchNorm]:
    """The task's own layers; its head takes no part."""
    return {
        f"{name}.{inner}": layer
        for name, switch in _switches(trunk).items()
        for inner, layer in batch_norms(sites.option(switch, task)).items()
    }


@torch.no_grad()
def estimate(
    layers: Mapping[str, _BatchNorm], run: Callable[[], None], what: str = "the pool"
) -> None:
    """Replace the statistics of some layers by those of the inputs they meet in `run`.

    Running mean and variance become the plain averages over the batches of each batch's
    mean and (unbiased) variance; meanwhile these layers normalise by the batch's own.

    Raises:
        ValueError: A layer met no inputs, or statistics that are not finite.
    """
    before = [(layer, layer.training, layer.momentum) for layer in layers.values()]
    try:
        for layer in layers.values():
            layer.reset_running_stats()
            layer.train()
            layer.momentum = None  # a cumulative average
        run()
    finally:
        for layer, training, momentum in before:
            layer.train(training)
            layer.momentum = momentum
    for name, layer in layers.items():
        idle = not layer.num_batches_tracked
        if idle or not torch.isfinite(cast(Tensor, layer.running_var)).all():
            raise ValueError(
                f"batch_norm: layer '{name}' got "
                + ("no inputs" if idle else "statistics that are not finite")
                + f" from the samples of {what}. Use more samples, or batch_norm=average."
            )
