"""A task pool's report: as a table for the terminal, with a sweep's others, in a card."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.table import Table
from rich.text import Text

from ..common.loggers import choices, log_summary, log_table
from ..merged.cards import note_scores
from .columns import rows_frame, scalars
from .evaluation import Scores, read_tasks, score
from .files import write_json
from .numbers import PLAIN, Scale, whole_text
from .results import Comparison
from .tables import TableOptions, markdown_table
from .terminal import new_table

_SWEEP = "sweep.json"


def report_table(report: Mapping[str, Any], scores: Scores) -> Table:
    """One line per task, the mean first.

    The main metric is in percent if it is a share, such as accuracy.
    """
    average, main = scores.average(), scores.metric
    others = [metric for metric in average if metric != main]
    scale = _scale(scores, [numbers[main] for numbers in scores.tasks.values()])
    table = new_table("task", [f"{main} {scale.unit}".strip(), *others])
    for name, numbers in {"average": average, **scores.tasks}.items():
        cells = [scale.text(numbers[main]), *(PLAIN.text(numbers[m]) for m in others)]
        table.add_row(Text(name), *cells, end_section=name == "average")
    parameters = report.get("model_info", {}).get("all_params")
    if parameters is not None:
        table.caption = Text(f"{whole_text(parameters)} parameters", justify="left")
    return table


def _scale(scores: Scores, values: Iterable[float]) -> Scale:
    return Scale(scores.higher_is_better and all(0 <= value <= 1 for value in values))


def report_scores(report: object) -> Scores | None:
    """What a report says of every task; None if it has no tasks, or unlike metrics."""
    try:
        scores = score(read_tasks(report))
    except ValueError:  # nothing to tabulate
        return None
    return None if scores.metrics else scores


def sweep_table(hydra: Any, scores: Scores) -> Table:
    """The jobs of a sweep so far, this one included, the best first."""
    file = Path(hydra.sweep.dir) / _SWEEP
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):  # of jobs side by side
        jobs = json.loads(file.read_text()) if file.is_file() else {}
        jobs[", ".join(hydra.overrides.task)] = scores.average()[scores.metric]
        write_json(file, jobs)
    scale = _scale(scores, jobs.values())
    table = new_table("job", [f"average {scores.metric} {scale.unit}".strip()])
    ranked = sorted(
        jobs.items(), key=lambda job: job[1], reverse=scores.higher_is_better
    )
    for overrides, value in ranked:
        table.add_row(Text(overrides), scale.text(value))
    table.caption = Text(f"{len(jobs)} job(s) so far, in {file}", justify="left")
    return table


def note_main_scores(folder: Path, scores: Scores) -> None:
    """Write the main metric of every task into a saved model's card."""
    main, own = scores.metric, scores.metrics
    found = {t: (own.get(t, main), v[main]) for t, v in scores.tasks.items()}
    note_scores(folder, found)


def tell_loggers(
    fabric: Any, found: Comparison, shown: TableOptions, settings: Mapping
) -> None:
    """Give the summary and what led to it to the user's loggers."""
    frame = rows_frame(found)
    log_summary(fabric, scalars(frame, found.tasks), {**choices(), **settings})
    log_table(fabric, "summary", frame, markdown_table(found, shown))
