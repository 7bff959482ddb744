"""Run one cell apart from all others and write down what came of it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import lightning as L
import torch
from fusion_bench import BaseModelPool
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..common.logging import get_logger
from ..pools import with_shared_heads
from ..pools.loading import head_site
from ..pools.task_heads import with_task_heads
from .artifacts import artifacts
from .cells import Cell
from .environment import PeakMemory
from .evaluation import evaluate_experts, evaluate_model, score
from .isolation import isolated, named_models
from .names import EXPERTS, PRETRAINED
from .records import Measured, done_record, failed_record

log = get_logger(__name__)


@dataclass
class Bench:
    """What all cells of one process share.

    Attributes:
        modelpool, taskpool: Loaded once; cells get a view of the model pool.
        build: Cell -> its algorithm and the algorithm's resolved config.
        metric: The main metric's name, a mapping from task to name, or None to find it.
        device: Where cells run, for the record.
        base_parameters: Of the pretrained model; None if the pool has none.
        own_heads: Whether the experts have classification heads of their own.
        save: Called with a cell, a part's name and its model, to keep the model.
    """

    modelpool: BaseModelPool
    taskpool: object
    build: Callable[[Cell], tuple[object, DictConfig]]
    metric: str | Mapping | None = None
    device: str = "cpu"
    base_parameters: int | None = field(init=False, default=None)
    own_heads: bool = field(init=False, default=False)
    save: Callable[[Cell, str | None, nn.Module], None] | None = None

    def __post_init__(self) -> None:
        if self.modelpool.has_pretrained:
            base = self.modelpool.load_pretrained_model()
            if isinstance(base, nn.Module):
                self.base_parameters = _numel(base)
                self.own_heads = head_site(self.modelpool, base) is not None

    def view(self, own_method: bool) -> BaseModelPool:
        """The model pool for one method, which may do with it as it likes.

        FusionBench's methods merge every tensor: where experts have heads of their own,
        which may differ in shape, these methods see the pretrained model's instead.
        """
        pool = isolated(self.modelpool)
        return with_shared_heads(pool) if self.own_heads and not own_method else pool

    def complete(self, model: nn.Module) -> nn.Module:
        """The model with each expert's own head for its task, if experts have such."""
        return with_task_heads(model, self.modelpool) if self.own_heads else model


def run_cell(cell: Cell, bench: Bench) -> list[dict]:
    """Run one cell; its error, if any, is part of the record.

    Returns:
        One record, or one for each model when the method makes several.
    """
    memory = PeakMemory()
    _free_memory()
    memory.start()
    start = time.perf_counter()
    records = []
    try:
        with torch.enable_grad():  # whatever an earlier method left switched
            for measured in _measure(cell, bench):
                scores = score(measured.tasks, bench.metric)
                records.append(done_record(cell, measured, scores))
    except (Exception, SystemExit) as error:
        log.error("%s failed: %s", cell.id, error, exc_info=True)
        records = [failed_record(cell, error, time.perf_counter() - start)]
    peak = memory.read()
    parts = [record["part"] for record in records]
    common = {"parts": parts, "peak_memory_mib": peak, "device": bench.device}
    return [record | common for record in records]


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _measure(cell: Cell, bench: Bench) -> Iterator[Measured]:
    L.seed_everything(cell.seed, verbose=False)
    if cell.method.name == EXPERTS:
        yield _measure_experts(bench)
        return
    start = time.perf_counter()
    method, config = None, {}
    if cell.method.name == PRETRAINED:
        result = bench.view(own_method=True).load_pretrained_model()
    else:
        method, built = bench.build(cell)
        config = OmegaConf.to_container(built)
        pool = bench.view(cell.method.is_own)
        method.on_run_start()
        result = method.run(pool)
        method.on_run_end()
    _wait_for_device()
    seconds = time.perf_counter() - start
    left = artifacts(method)
    for part, model in named_models(result):
        yield replace(
            _measure_model(cell, bench, part, model),
            merge_seconds=seconds,
            config=config,
            artifacts=left,
        )


def _measure_experts(bench: Bench) -> Measured:
    start = time.perf_counter()
    pool = bench.view(own_method=True)
    tasks = evaluate_experts(pool, bench.taskpool)
    seconds = time.perf_counter() - start
    size = bench.base_parameters
    total = None if size is None else size * len(pool.model_names)
    added = None if size is None else total - size
    return Measured(
        None, tasks, 0.0, seconds, {"model": total, "added": added}, config={}
    )


def _measure_model(cell: Cell, bench: Bench, part: str | None, model) -> Measured:
    model = bench.complete(model)
    parameters = _parameters(model, bench.base_parameters)
    L.seed_everything(cell.seed, verbose=False)  # however much the method drew
    start = time.perf_counter()
    tasks = evaluate_model(model, bench.taskpool)
    _wait_for_device()
    seconds = time.perf_counter() - start
    if bench.save is not None:
        bench.save(cell, part, model)
    return Measured(part, tasks, 0.0, seconds, parameters, config={})


def _wait_for_device() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _numel(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _parameters(model: nn.Module, base: int | None) -> dict[str, int | None]:
    total = _numel(model)
    if hasattr(model, "parameter_report"):  # some tints replace a layer, some add one
        added = int(model.parameter_report()["tints"])
    else:
        added = None if base is None else max(total - base, 0)
    return {"model": total, "added": added}
