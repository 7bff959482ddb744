"""The test-time training loop that all learned merges share.

A step costs one forward and backward of the plain model, plus one pass over the task
vectors to merge and one to read the coefficients' gradient. It knows no pool and no
method: they hand in weights, tasks, a forward function and a loss.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..common.upstream import precision_of
from .batching import plan_groups
from .coefficients import Coefficients
from .data import Batch
from .interfaces import AdaptationDiverged, Callback, Loss, StepReport
from .memory import MemoryPlan
from .predictor import Predictor
from .schedule import Draws, Schedule


@dataclass
class Engine:
    """Learns coefficients (and task heads) by the schedule's steps.

    Attributes:
        predictor: Weights, tasks and forward function. Each process runs its share of
            every batch; only coefficients and the tasks' parameters are reduced.
        coefficients: What is learned about the merge.
        loss: What a batch costs, per sample and per draw.
        schedule: Steps; its task indices are places in the predictor's tasks.
        optimizer: Over the coefficients' and the tasks' parameters.
        batch_tasks: ``auto``, True or False: one forward for several tasks at once.
        compile: Run the module through torch.compile.
        callbacks: Called in order.
        step: Steps done.
        stopped: Set by a callback to end the run.
        seconds: Spent on each part of the steps.

    Source: the step is that of AdaMerging, arXiv:2310.02575, with the gradient
    dL/d lambda[t, l] = <tau_t[l], dL/d theta[l]> read off instead of backpropagated.
    """

    predictor: Predictor
    coefficients: Coefficients
    loss: Loss
    schedule: Schedule
    optimizer: torch.optim.Optimizer
    batch_tasks: str | bool = "auto"
    compile: bool = False
    callbacks: Sequence[Callback] = ()
    step: int = field(init=False, default=0)
    stopped: bool = field(init=False, default=False)
    seconds: dict[str, float] = field(
        init=False, default_factory=lambda: defaultdict(float)
    )

    def __post_init__(self) -> None:
        self.weights, self.tasks = self.predictor.weights, self.predictor.tasks
        self.fabric = self.predictor.fabric
        self.weights.module.eval()  # no dropout, stored batch norm statistics
        self.weights.train_moved_layers()
        self.coefficients.to(self.weights.device)
        self._runner: Any = self.weights.module
        if self.compile:
            self._runner = torch.compile(self.weights.module)
        self._stepper: Any = self.fabric.setup_optimizers(self.optimizer)
        self.materialise()
        first = self.schedule.draws(0)
        self._groups = plan_groups(self.predictor, first, self.batch_tasks)

    def run(self) -> None:
        """Run the remaining steps, then leave the merged weights in the module.

        Raises:
            AdaptationDiverged: A loss or gradient is NaN or Inf.
        """
        for callback in self.callbacks:
            callback.on_start(self)
        while self.step < self.schedule.steps and not self.stopped:
            report = self.train_step()
            for callback in self.callbacks:
                callback.on_step(self, report)
        for callback in self.callbacks:
            callback.on_end(self)
        self.materialise()

    @property
    def learned(self) -> list[Tensor]:
        """Everything the optimiser moves, in its order."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def materialise(self) -> nn.Module:
        """Merge with the present coefficients; returns the module."""
        return self.weights.materialise(self.coefficients.effective().detach())

    def memory_plan(self) -> MemoryPlan:
        """What the steps hold at their peak."""
        tasks = len(self.schedule.draws(0))
        size, forwards = min(self._groups.size, tasks), -(-tasks // self._groups.size)
        return self.weights.memory_plan(size * self._groups.activations, size, forwards)

    def train_step(self) -> StepReport:
        """One optimiser step; nothing is updated if no sample has a weight."""
        with self._timed("merge"):
            effective = self.coefficients.effective()
            self.weights.materialise(effective.detach())
        report = self._backward(self.schedule.draws(self.step))
        with self._timed("coefficients"):
            gradient = self._sum(self.weights.coefficient_gradient())
            if effective.requires_grad:
                effective.backward(gradient.to(effective))
            self._reduce_task_parameters(report)
            self._drop_idle_gradients(report)
        self._raise_if_diverged(report, gradient)
        with self._timed("optimizer"):
            if any(report.kept.values()):
                self._stepper.step()
            self._stepper.zero_grad()
        self.step += 1
        return report

    def _backward(self, draws: Draws) -> StepReport:
        report = StepReport(self.step, {}, {}, {}, {})
        for group in self._groups(draws):
            with self._timed("data"):
                batches = [self.tasks[t].source.batch(d) for t, d in group]
            with self._timed("forward"):
                total, measured = self._group_loss(group, batches)
            with self._timed("backward"):
                if total.requires_grad:
                    self.fabric.backward(total)
            with self._timed("wait"):  # reading values waits for the device
                self._record(report, group, self._sum(measured).tolist())
        return report

    def _group_loss(self, group: Draws, batches: list[Batch]) -> tuple[Tensor, Tensor]:
        """Loss of tasks run in one forward, and [loss, entropy sum, kept, samples] each."""
        inputs = torch.cat([b.inputs for b in batches]) if len(batches) > 1 else None
        inputs = batches[0].inputs if inputs is None else inputs
        losses, measured = [], []
        self.predictor.activate(group[0][0])
        with self.fabric.autocast():
            features = self.predictor.forward(self._runner, inputs)
            parts = features.split([len(batch.samples) for batch in batches])
            for (task, draws), part, batch in zip(group, parts, batches, strict=True):
                logits = self.tasks[task].head(part)
                logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                loss, numbers = self._task_loss(task, len(draws), logits, batch)
                losses.append(loss)
                measured.append(numbers)
        return torch.stack(losses).sum(), torch.stack(measured)

    def _task_loss(
        self, task: int, draws: int, logits: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        losses = self.loss(self.tasks[task].name, logits, batch)
        weights, numbers = losses.shares, batch.draws.to(logits.device)
        totals = weights.new_zeros(draws).index_add_(0, numbers, weights)
        totals = self._sum(totals)  # a draw's mean is over all processes' samples
        totals = totals.clamp_min(torch.finfo(totals.dtype).tiny)
        shares = (weights / totals[numbers]).detach()
        loss = (losses.values * shares).sum()
        if losses.averaged is not None and losses.of_mean is not None:
            parts = losses.averaged * shares[:, None]
            own = parts.new_zeros(draws, parts.shape[1]).index_add(0, numbers, parts)
            loss = loss + self._of_all(own, losses.of_mean)
        with torch.no_grad():
            log_p = logits.log_softmax(-1)
            entropy = -(log_p.exp() * log_p).sum(-1)  # one place per sample, or many
            entropy = entropy.view(len(logits), -1).mean(1).sum()
            kept = (weights > 0).sum().to(logits)
            count = torch.full_like(entropy, len(logits))
            return loss, torch.stack([loss.detach(), entropy, kept, count])

    def _of_all(self, own: Tensor, of_mean: Callable[[Tensor], Tensor]) -> Tensor:
        """A process's part of a term of all processes' means, with its whole gradient."""
        means = own + (self._sum(own.detach().clone()) - own.detach())
        term = of_mean(means).sum()
        return term - term.detach() * (1 - 1 / self.fabric.world_size)

    def _record(
        self, report: StepReport, group: Draws, measured: list[list[float]]
    ) -> None:
        for (task, _), (loss, entropy, kept, samples) in zip(
            group, measured, strict=True
        ):
            name = self.tasks[task].name
            report.loss[name], report.kept[name] = loss, kept
            report.entropy[name] = entropy / max(samples, 1)
            report.seen[name] = samples

    def _reduce_task_parameters(self, report: StepReport) -> None:
        """Add up the gradients of the tasks this step has seen, over all processes."""
        if self.fabric.world_size == 1:
            return
        for task in self.tasks:
            for parameter in task.parameters if task.name in report.loss else ():
                gradient = parameter.grad
                if gradient is None:  # this process had none of the batch's samples
                    gradient = torch.zeros_like(parameter)
                parameter.grad = self._sum(gradient)

    def _drop_idle_gradients(self, report: StepReport) -> None:
        """A zero gradient would let Adam's momentum move a task that kept no sample."""
        for task in self.tasks:
            for parameter in task.parameters if not report.kept.get(task.name) else ():
                parameter.grad = None

    def _sum(self, tensor: Tensor) -> Tensor:
        if self.fabric.world_size == 1:
            return tensor
        return cast(Tensor, self.fabric.all_reduce(tensor, reduce_op="sum"))

    def _raise_if_diverged(self, report: StepReport, gradient: Tensor) -> None:
        bad = [n for n, loss in report.loss.items() if not math.isfinite(loss)]
        # A gradient scaler (float16) skips the steps that overflow.
        scaled = getattr(precision_of(self.fabric), "scaler", None) is not None
        if not bad and (scaled or self._gradients_are_finite(report, gradient)):
            return
        where = f"the loss of task(s) {bad}"
        if not bad:
            where = f"the gradient of a step over task(s) {list(report.loss)}"
        raise AdaptationDiverged(
            f"{where} is NaN or Inf at step {self.step}. The last checkpoint is intact."
            " Lower lr, use float32 or bf16-mixed precision, and check these tasks' heads"
            " and samples."
        )

    def _gradients_are_finite(self, report: StepReport, gradient: Tensor) -> bool:
        sums = [gradient.sum()]
        for task in self.tasks:
            owned = task.parameters if task.name in report.loss else ()
            sums += [p.grad.sum() for p in owned if p.grad is not None]
        return math.isfinite(sum(sums))

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start
