"""Run one cell apart from all others and write down what came of it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from copy import copy, deepcopy
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count
from typing import Any

import lightning as L
import torch
from fusion_bench import BaseAlgorithm, BaseModelPool
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..common import get_logger
from ..common.running import full_errors
from ..common.upstream import models_of
from ..pools import with_shared_heads
from ..pools.clip_tasks import registered_tasks
from ..pools.family import PRETRAINED as BASE
from ..pools.loading import head_site, load_model, load_module
from ..pools.replaced import with_experts
from ..pools.task_heads import with_task_heads
from .cells import Cell
from .costs import (
    Meter,
    count_samples,
    experts_parameters,
    memory,
    numel,
    parameters,
    peak_memory,
    restart_peak_memory,
    uses_cuda,
)
from .evaluation import (
    Scores,
    TakenName,
    UnknownMetric,
    evaluate_experts,
    evaluate_model,
    score,
)
from .loading import EXPERTS, PRETRAINED
from .records import artifacts, failed_record, measured, new_record

log = get_logger(__name__)


@dataclass
class Bench:
    """What all cells of one process share.

    Attributes:
        modelpool, taskpool: Loaded once; cells get a view of the model pool.
        build: Cell -> its algorithm and the algorithm's resolved config.
        metric: The main metric's name, a mapping from task to name, or None to find it.
        device: Where cells run, for the record.
        save: Called with a cell, a part's name, its model and scores, to keep the model.
        base_parameters: Of the pretrained model; None if the pool has none.
        own_heads: Whether the experts have classification heads of their own.
    """

    modelpool: BaseModelPool
    taskpool: Any
    build: Callable[[Cell], tuple[BaseAlgorithm, DictConfig]]
    metric: str | Mapping | None = None
    device: str = "cpu"
    save: Callable[[Cell, str | None, nn.Module, Scores], None] = lambda *_: None
    base_parameters: int | None = field(init=False, default=None)
    own_heads: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        if self.modelpool.has_pretrained:
            base = load_model(self.modelpool, BASE)
            if isinstance(base, nn.Module):
                self.base_parameters = numel(base)
                self.own_heads = head_site(self.modelpool, base) is not None

    def view(self, own_method: bool) -> BaseModelPool:
        """The model pool for one method, which may do with it as it likes.

        Models that the pool holds in memory are copied. Ours check what they load;
        FusionBench's methods get models that were checked. These merge every tensor:
        where experts have heads of their own, which may differ in shape, they see the
        pretrained model's instead.
        """
        pool = copy(self.modelpool)
        models_of.put(pool, deepcopy(models_of(pool)))
        if own_method:
            return pool
        if self.own_heads:
            return with_shared_heads(pool)
        return with_experts(pool, partial(load_module, pool))

    def complete(self, model: nn.Module) -> nn.Module:
        """The model with each expert's own head for its task, if experts have such."""
        return with_task_heads(model, self.modelpool) if self.own_heads else model


def run_cell(cell: Cell, bench: Bench) -> list[dict]:
    """One record, or one for each model of several; a failed cell's has its error."""
    _free_memory()
    restart_peak_memory()
    before = {"memory_before_mib": memory()}
    start = time.perf_counter()
    try:
        # Whatever an earlier method left switched, and what this one leaves registered.
        with torch.enable_grad(), registered_tasks():
            records = list(_measure(cell, bench))
    except (TakenName, UnknownMetric):  # which every other cell would fail with, too
        raise
    except (Exception, SystemExit) as error:
        log.error("%s failed: %s", cell.id, error, exc_info=full_errors())
        records = [failed_record(cell, error, time.perf_counter() - start)]
    parts = [record["part"] for record in records]
    common = {"parts": parts, "peak_memory_mib": peak_memory(), "device": bench.device}
    return [record | before | common for record in records]


def _free_memory() -> None:
    gc.collect()
    if uses_cuda():
        torch.cuda.empty_cache()


def _measure(cell: Cell, bench: Bench) -> Iterator[dict]:
    L.seed_everything(cell.seed, verbose=False)
    if cell.method.name == EXPERTS:
        yield _measure_experts(cell, bench)
        return
    meter = Meter()
    method: Any = None
    config: Any = {}
    if cell.method.name == PRETRAINED:
        result = load_model(bench.view(own_method=True), BASE)
    else:
        method, built = bench.build(cell)
        config = OmegaConf.to_container(built)
        pool = bench.view(cell.method.is_own)
        method.on_run_start()
        result = method.run(pool)
        method.on_run_end()
    meter.stop("merge")
    known: dict[str, Any] = {"config": config, "artifacts": artifacts(method)}
    for part, model in named_models(result):
        model = bench.complete(model)
        L.seed_everything(cell.seed, verbose=False)  # however much the method drew
        meter.start()
        found = evaluate_model(model, bench.taskpool)
        meter.stop("evaluate")
        scores = score(found.tasks, bench.metric)
        bench.save(cell, part, model, scores)
        known["parameters"] = parameters(model, bench.base_parameters)
        known["samples"] = count_samples(found, method)
        yield new_record(
            cell, part, **measured(scores, found), **meter.record(), **known
        )


def _measure_experts(cell: Cell, bench: Bench) -> dict:
    meter = Meter()
    meter.stop("merge")
    pool = bench.view(own_method=True)
    meter.start()
    found = evaluate_experts(pool, bench.taskpool)
    meter.stop("evaluate")
    scores = score(found.tasks, bench.metric)
    count = len(pool.model_names)
    return new_record(
        cell,
        **measured(scores, found),
        **meter.record(),
        parameters=experts_parameters(bench.base_parameters, count),
        samples=count_samples(found, None),
    )


def named_models(result: object) -> list[tuple[str | None, nn.Module]]:
    """The models a method returned; the name is None where there is just one."""
    if isinstance(result, nn.Module):
        return [(None, result)]
    found: dict[str | None, nn.Module] = {}
    for path, model in _walk(result):
        names = (f"{path} ({number})" for number in count(2))
        found[next(n for n in chain([path], names) if n not in found)] = model
    if not found:
        raise TypeError(
            f"The method returned {type(result).__name__}, expected a model, or models in"
            " a mapping or list."
        )
    return list(found.items())


def _walk(result: object, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    if isinstance(result, (list, tuple)):
        result = dict(enumerate(result))
    for name, value in result.items() if isinstance(result, Mapping) else ():
        if isinstance(value, nn.Module):
            yield f"{prefix}{name}", value
        else:
            yield from _walk(value, f"{prefix}{name}.")
