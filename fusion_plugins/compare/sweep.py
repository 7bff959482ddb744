"""How a method's result responds to one of its options."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from .options import did_you_mean, flatten
from .store import Results

Points = dict[float, list[float]]  # value of the option -> results, one per seed


def plot_sweep(
    folder: str | Path,
    option: str,
    *,
    method: str | None = None,
    task: str | None = None,
    logarithmic: bool = False,
    out: str | Path | None = None,
) -> Path:
    """Draw one line for each setting of the other options that were changed.

    Args:
        folder: The results folder.
        option: Dotted name of a numeric method option, as ``base.scaling_factor``.
        method: Only this method's cells.
        task: A task's main metric instead of the average.
        logarithmic: A logarithmic axis for the option.
        out: The picture; ``sweep_<option>.png`` in the results folder by default.

    Returns:
        The picture's path. Points are means over seeds, bars sample standard deviations.

    Raises:
        ValueError: Fewer than two finished cells have different values of the option.
    """
    results = Results(folder)
    records = [
        record
        for record in results.records()
        if record["status"] == "done" and method in (None, record["method"])
    ]
    lines = sweep_lines(records, option, task)
    if len({value for points in lines.values() for value in points}) < 2:
        known = sorted({name for r in records for name, _ in flatten(r["config"])})
        raise ValueError(
            f"{folder} has fewer than two finished cells with different numbers for the"
            f" option '{option}'.{did_you_mean(option, known)}"
        )
    path = Path(out) if out else results.folder / f"sweep_{option}.png"
    first = next(r for r in records if option in dict(flatten(r["config"])))
    _draw(lines, option, f"{task or 'average'} {first['metric']}", logarithmic, path)
    return path


def sweep_lines(
    records: Sequence[Mapping], option: str, task: str | None = None
) -> dict[str, Points]:
    """Label of the other changed options -> points.

    Raises:
        ValueError: A cell has no such task.
    """
    lines: dict[str, Points] = defaultdict(lambda: defaultdict(list))
    for record in records:
        value = dict(flatten(record["config"])).get(option)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        others = {k: v for k, v in flatten(record["overrides"]) if k != option}
        text = ", ".join(f"{k}={v}" for k, v in others.items())
        label = f"{record['method']} ({text})" if text else record["method"]
        lines[label][value].append(_result(record, task))
    return {label: dict(sorted(points.items())) for label, points in lines.items()}


def _result(record: Mapping, task: str | None) -> float:
    if task is None:
        return record["average"][record["metric"]]
    if task not in record["tasks"]:
        raise ValueError(f"There is no task '{task}'; tasks: {list(record['tasks'])}.")
    return record["tasks"][task][record["metric"]]


def _draw(
    lines: Mapping[str, Points], option: str, metric: str, logarithmic: bool, path: Path
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for label, points in lines.items():
        means = [statistics.fmean(results) for results in points.values()]
        spreads = [statistics.stdev(r) if len(r) > 1 else 0 for r in points.values()]
        axes.errorbar(list(points), means, spreads, marker="o", capsize=3, label=label)
    axes.set(xlabel=option, ylabel=metric, xscale="log" if logarithmic else "linear")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
