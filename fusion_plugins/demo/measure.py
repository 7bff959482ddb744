"""Measure merging methods on a demo pool with FusionBench's own task pool."""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fusion_bench.method import SimpleAverageAlgorithm, TaskArithmeticAlgorithm
from fusion_bench.modelpool import CLIPVisionModelPool
from fusion_bench.taskpool import CLIPVisionModelTaskPool
from rich import box
from rich.table import Table
from torch import nn
from tqdm import tqdm

from ..compare.evaluation import evaluate_experts
from .pools import demo_modelpool, demo_taskpool
from .recipe import DemoInputError

Scores = dict[str, float]  # task -> accuracy, 0 to 1
EXPERTS = "experts"  # each expert on its own task: not one model, so not in METHODS


def _pretrained(pool: CLIPVisionModelPool) -> nn.Module:
    return pool.load_pretrained_model()


def _simple_average(pool: CLIPVisionModelPool) -> nn.Module:
    return SimpleAverageAlgorithm().run(pool)


def _task_arithmetic(pool: CLIPVisionModelPool) -> nn.Module:
    return TaskArithmeticAlgorithm(scaling_factor=0.3).run(pool)


def _awd(pool: CLIPVisionModelPool) -> nn.Module:
    from .. import AWDAlgorithm

    return AWDAlgorithm().run(pool)


# Row of the table -> what makes its model. A new method is one line here.
METHODS: dict[str, Callable[[CLIPVisionModelPool], nn.Module]] = {
    "pretrained": _pretrained,
    "simple_average": _simple_average,
    "task_arithmetic": _task_arithmetic,
    "awd": _awd,
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep FusionBench's and transformers' progress off the screen."""
    loggers = [logging.getLogger(name) for name in ("fusion_bench", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.ExitStack() as stack:
            # A real file: FusionBench asks standard output for its file number.
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _scores(report: dict, tasks: Sequence[str]) -> Scores:
    return {task: float(report[task]["accuracy"]) for task in tasks}


def choose_methods(wanted: Sequence[str] | None) -> list[str]:
    """The rows to measure, in the table's order of `METHODS`, experts second.

    Raises:
        DemoInputError: A name is not a method.
    """
    known = ["pretrained", EXPERTS, *(name for name in METHODS if name != "pretrained")]
    unknown = [name for name in wanted or () if name not in known]
    if unknown:
        raise DemoInputError(f"unknown methods {unknown}; available: {known}")
    return [name for name in known if wanted is None or name in wanted]


def measure(
    root: str | os.PathLike | None = None,
    seed: int = 0,
    methods: Sequence[str] | None = None,
) -> dict[str, Scores]:
    """Accuracy of every method's model on every task of the pool.

    Args:
        root: A pool's folder; None uses the built-in pool, built on first use.
        seed: Seed of the built-in pool.
        methods: Names from `METHODS` or "experts"; None takes all.
    """
    names = choose_methods(methods)
    pool = demo_modelpool(root, seed)
    tasks = pool.model_names
    taskpool: CLIPVisionModelTaskPool = demo_taskpool(root, seed)
    results = {}
    for name in tqdm(names, desc="Measuring methods", leave=False):
        with quiet():
            if name == EXPERTS:
                results[name] = _scores(evaluate_experts(pool, taskpool), tasks)
            else:
                # A pool of its own: some of FusionBench's methods work in place.
                model = METHODS[name](demo_modelpool(root, seed))
                results[name] = _scores(taskpool.evaluate(model), tasks)
    return results


def mean(scores: Scores) -> float:
    """Plain average over the tasks."""
    return sum(scores.values()) / len(scores)


def make_table(results: dict[str, Scores], title: str) -> Table:
    """Rows methods, columns tasks and their average, in percent with one decimal."""
    tasks = list(next(iter(results.values())))
    # Narrow enough for six tasks in a terminal of 80 columns, names whole.
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=0)
    table.add_column("method", no_wrap=True)
    for name in [*tasks, "average"]:
        table.add_column(name, justify="right", no_wrap=True)
    for method, scores in results.items():
        numbers = [scores[task] for task in tasks] + [mean(scores)]
        table.add_row(method, *(f"{100 * number:.1f}" for number in numbers))
    return table


def save_results(results: dict[str, Scores], folder: str | os.PathLike) -> list[Path]:
    """Write `results.json` and the bar plot `accuracy.png`; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        name: {**scores, "average": mean(scores)} for name, scores in results.items()
    }
    numbers, picture = folder / "results.json", folder / "accuracy.png"
    numbers.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _save_bars(content, picture)
    return [numbers, picture]


def _save_bars(content: dict[str, Scores], path: Path) -> None:
    from matplotlib.figure import Figure

    columns = list(next(iter(content.values())))
    width = 0.8 / len(content)
    figure = Figure(figsize=(2 + 1.3 * len(columns), 4), layout="constrained")
    axes = figure.add_subplot()
    for row, (method, scores) in enumerate(content.items()):
        left = [column + row * width for column in range(len(columns))]
        axes.bar(left, [100 * scores[c] for c in columns], width, label=method)
    middle = width * (len(content) - 1) / 2
    axes.set_xticks([column + middle for column in range(len(columns))], columns)
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(0, 100)
    axes.legend(ncols=len(content), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(path, dpi=120)
