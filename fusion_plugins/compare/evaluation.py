"""Any FusionBench task pool's report as tasks, metrics and one main metric."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from fusion_bench import BaseModelPool
from torch import nn

from ..common.upstream import is_set_up, test_datasets_of
from ..pools.loading import load_model
from .files import Answers
from .noting import noted_answers

Tasks = dict[str, dict[str, float]]  # task -> metric -> value

_NOT_TASKS = ("model_info", "average")
_COLUMNS = (  # of the tables and frames, beside the tasks
    "label method metric seeds failed error added_parameters normalised_average"
    " merge_seconds evaluate_seconds peak_memory_mib average_difference average_low"
    " average_high average_same difference low high p same normalised"
).split()
# The first of these that a task reports is its main metric.
_MAIN = (
    "accuracy acc exact_match f1 f1_score macro_f1 matthews_correlation mcc spearman_rho"
    " spearman pearson mIoU miou auroc bleu rougeL rouge_l abs_err mean_err"
).split()
_LOWER_IS_BETTER = set(
    "loss error err perplexity ppl nll ece mse rmse mae wer cer".split()
)
SCORE = "score"  # name of the main metric where tasks have different ones


@dataclass(frozen=True)
class Scores:
    """What one model reached.

    Attributes:
        tasks: Every number of every task; with `SCORE` added where main metrics differ.
        metric: Name of the main metric.
        higher_is_better: Its direction.
        metrics: Task -> its own main metric, where these are unlike; else empty.
    """

    tasks: Tasks
    metric: str
    higher_is_better: bool
    metrics: Mapping[str, str] = field(default_factory=dict)

    @property
    def lower_is_better(self) -> list[str]:
        """Of tasks with `metrics` those that measure an error."""
        return [t for t, name in self.metrics.items() if not _higher_is_better(name)]

    def average(self) -> dict[str, float]:
        """Plain mean over the tasks of every metric that all tasks report.

        Unlike metrics have none: the tables' is of shares of the experts' results.
        """
        if self.metrics:
            return {}
        results = list(self.tasks.values())
        common = [name for name in results[0] if all(name in r for r in results)]
        return {m: sum(r[m] for r in results) / len(results) for m in common}


def read_tasks(report: object) -> Tasks:
    """The tasks of a report with their numbers; model information and averages left out."""
    entries = report.items() if isinstance(report, Mapping) else ()
    tasks = {str(t): _numbers(result) for t, result in entries if t not in _NOT_TASKS}
    tasks = {task: numbers for task, numbers in tasks.items() if numbers}
    if not tasks:
        raise ValueError(
            "The task pool reported no task with a number, but"
            f" {str(report)[:200]!r}; expected {{task: {{metric: value}}}}."
        )
    return tasks


def _numbers(result: object) -> dict[str, float]:
    entries = result.items() if isinstance(result, Mapping) else ()
    plain = {str(n): v.item() if hasattr(v, "item") else v for n, v in entries}
    real = {n: v for n, v in plain.items() if isinstance(v, Real)}
    return {n: float(v) for n, v in real.items() if not isinstance(v, bool)}


class TakenName(ValueError):
    """A task has a name that the tables use themselves, whatever the model."""


def check_task_names(tasks: Sequence[str]) -> None:
    """Raise TakenName if a task would take the place of something else in the tables."""
    taken = {*_NOT_TASKS, *_COLUMNS}
    taken |= {f"{name}_std" for name in (*taken, *tasks)}
    for task in tasks:
        if task in taken:
            raise TakenName(
                f"The task '{task}' has the name of a column of the tables; rename it in"
                " the task pool."
            )


class UnknownMetric(ValueError):
    """The wanted metric is none that the task pool reports, of any model."""


def check_metric(metric: Any, tasks: Sequence[str]) -> None:
    """Raise ValueError if `metric` is of a wrong kind, or names what is no task."""
    names = metric.values() if isinstance(metric, Mapping) else [metric]
    if not all(name is None or isinstance(name, str) for name in names):
        raise ValueError(
            f"metric is {metric!r}, expected a metric's name, or {{task: metric}}."
        )
    unknown = set(metric) - {*tasks} if isinstance(metric, Mapping) else ()
    if unknown:
        raise ValueError(f"metric names {sorted(unknown)}; the tasks are {[*tasks]}.")


def score(tasks: Tasks, metric: str | Mapping | None = None) -> Scores:
    """Choose the main metric of every task.

    Args:
        tasks: As `read_tasks` gives them.
        metric: A metric's name, a mapping from task to metric, or None to find it.
    """
    main = {t: _main_metric(t, numbers, metric) for t, numbers in tasks.items()}
    for task, name in main.items():
        value = tasks[task][name]
        if not math.isfinite(value):
            raise ValueError(f"{task}: {name} is {value}, not a finite number.")
    names = set(main.values())
    if len(names) == 1:
        name = names.pop()
        return Scores(tasks, name, _higher_is_better(name))
    tasks = {t: numbers | {SCORE: numbers[main[t]]} for t, numbers in tasks.items()}
    unlike = not all(map(_higher_is_better, names))  # errors have units
    return Scores(tasks, SCORE, True, main if unlike else {})


def _main_metric(task: str, numbers: Mapping, metric: str | Mapping | None) -> str:
    wanted = metric.get(task) if isinstance(metric, Mapping) else metric
    if wanted is None:
        found = [name for name in _MAIN if name in numbers]
        return next(iter(found + sorted(numbers, key=_higher_is_better, reverse=True)))
    if wanted not in numbers:
        raise UnknownMetric(f"metric={wanted}: {task} reports only {list(numbers)}.")
    return wanted


def _higher_is_better(metric: str) -> bool:
    return _LOWER_IS_BETTER.isdisjoint(metric.lower().replace("-", "_").split("_"))


@dataclass(frozen=True)
class Evaluation:
    """What a task pool says of one model.

    Attributes:
        tasks: Every number of every task.
        answers: Task -> its answers to every sample; empty where they are not known.
    """

    tasks: Tasks = field(default_factory=dict)
    answers: dict[str, Answers] = field(default_factory=dict)


def evaluate_experts(modelpool: BaseModelPool, taskpool: Any) -> Evaluation:
    """Each expert on its own task, one after the other; tasks without one left out."""
    whole = Evaluation()
    seen: Sequence[str] = ()
    for name in modelpool.model_names:
        known = task_names(taskpool)
        if known is not None and name not in known:
            seen = known
            continue
        with only_task(taskpool, name):
            found = evaluate_model(load_model(modelpool, name), taskpool)
        seen = list(found.tasks)
        whole.tasks.update({t: v for t, v in found.tasks.items() if t == name})
        whole.answers.update({t: v for t, v in found.answers.items() if t == name})
    if not whole.tasks:
        raise ValueError(
            f"The model pool's experts {modelpool.model_names} have no task of the same"
            f" name; the task pool has {list(seen)}."
        )
    return whole


def evaluate_model(model: nn.Module, taskpool: Any) -> Evaluation:
    """One model on every task."""
    with noted_answers() as notes:
        tasks = read_tasks(taskpool.evaluate(model))
    check_task_names([*tasks])
    return Evaluation(tasks, notes.answers(tasks))


def task_names(taskpool: Any) -> list[str] | None:
    """The pool's tasks before any evaluation; None where it does not say."""
    datasets = test_datasets_of(taskpool, None)
    return list(map(str, datasets)) if isinstance(datasets, Mapping) else None


@contextlib.contextmanager
def only_task(taskpool: Any, task: str) -> Iterator[None]:
    """Let the pool evaluate one task only, where it keeps its tasks in mappings.

    Other pools evaluate all their tasks as ever, which costs time but no result.
    """
    if is_set_up(taskpool, True) is False:
        taskpool.setup()  # else it would fill the mappings again
    names = (test_datasets_of.name, "test_datasets", "test_dataloaders")
    held = {name: getattr(taskpool, name, None) for name in names}
    whole = {n: m for n, m in held.items() if isinstance(m, Mapping) and task in m}
    for name, mapping in whole.items():
        setattr(taskpool, name, {task: mapping[task]})
    try:
        yield
    finally:
        for name, mapping in whole.items():
            setattr(taskpool, name, mapping)
