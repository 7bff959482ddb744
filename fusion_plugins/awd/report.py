"""What AWD leaves behind for people: a JSON summary and a picture of the cosines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from ..common import DIVERGING, PAGE, get_logger, new_figure, save_pictures

if TYPE_CHECKING:
    from lightning import Fabric
    from matplotlib.figure import Figure
    from torch import Tensor

    from .disentangle import Disentanglement

log = get_logger(__name__)

_NUMBERED = 12  # tasks at most whose cosines are written into the picture


def summary(result: Disentanglement) -> dict:
    """Everything measured, as plain numbers.

    Keys: tasks; settings; granularity; tensors (that took part); task_vector_norms;
    delta_norm (both in the task vectors' scale); coefficients (c; only for ``model``);
    stationary_alpha (AWD acts only below it, largest of the groups); cosines_before and
    cosines_after; loss, orthogonality and redundancy per iteration.
    """
    before, after = result.cosines()
    losses = result.solution.losses
    report = {
        "tasks": list(result.tasks),
        "settings": vars(result.settings),
        "granularity": result.gram.granularity,
        "groups": len(result.gram.values),
        "tensors": len(result.gram.keys),
        "task_vector_norms": result.task_vector_norms().tolist(),
        "delta_norm": result.delta_norm(),
        "stationary_alpha": result.thresholds.max().item(),
        "mean_absolute_cosine": [mean_absolute(before), mean_absolute(after)],
        "cosines_before": before.tolist(),
        "cosines_after": after.tolist(),
        "loss": losses[:, 0].tolist(),
        "orthogonality": losses[:, 1].tolist(),
        "redundancy": losses[:, 2].tolist(),
    }
    if result.gram.granularity == "model":
        report["coefficients"] = result.solution.coefficients[0].tolist()
    return report


def publish(result: Disentanglement, fabric: Fabric, folder: str | Path | None) -> None:
    """Log what was found, its losses to Fabric's loggers, and write the report.

    Args:
        result: What was found.
        fabric: With loggers or without.
        folder: For the report; None for none.
    """
    before, after = (mean_absolute(cosines) for cosines in result.cosines())
    norms = result.task_vector_norms()
    log.info(
        "AWD: mean |cos| %.4f -> %.4f, |delta| %.4g, norms %.3g to %.3g",
        before,
        after,
        result.delta_norm(),
        norms.min().item(),
        norms.max().item(),
    )
    names = ("awd/loss", "awd/orthogonality", "awd/redundancy")
    for step, values in enumerate(result.solution.losses.tolist()):
        fabric.log_dict(dict(zip(names, values, strict=True)), step=step)
    if folder is not None and fabric.is_global_zero:
        for path in save(result, folder):
            log.debug("AWD report: %s", path)


def mean_absolute(cosines: Tensor) -> float:
    """Mean absolute off-diagonal cosine; 0 for a single task."""
    tasks = len(cosines)
    off_diagonal = cosines.abs().sum() - cosines.diagonal().abs().sum()
    return (off_diagonal / max(tasks * (tasks - 1), 1)).item()


def save(result: Disentanglement, folder: str | Path) -> list[Path]:
    """Write ``awd.json`` and, with matplotlib, ``awd_cosines``; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "awd.json"
    report.write_text(json.dumps(summary(result), indent=2))
    before, after = (cosines.numpy() for cosines in result.cosines())
    matrices = {"before AWD": before, "after AWD": after}
    pictures = {"awd_cosines": partial(draw_cosines, result.tasks, matrices)}
    return [report, *save_pictures(folder, pictures, "the cosines")]


def draw_cosines(tasks: Sequence[str], matrices: Mapping[str, np.ndarray]) -> Figure:
    """Cosines between task vectors, side by side on one scale.

    Args:
        tasks: Names of rows and columns.
        matrices: Title -> (tasks, tasks). The first one's largest off the diagonal is
            the end of the scale.
    """
    count, across = len(tasks), min(len(matrices), 3)
    down = -(-len(matrices) // across)
    side = max(1.7, min(0.3 * count, (PAGE - 1.5) / across))
    figure = new_figure(across * side + 1.5, down * (side + 0.4) + 0.7)
    figure.set_layout_engine("compressed")
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    apart = ~np.eye(count, dtype=bool)
    largest = np.abs(next(iter(matrices.values()))[apart]).max(initial=1e-3)
    for axes, (title, matrix) in zip(panels.flat, matrices.items(), strict=False):
        shown = np.where(apart, matrix, np.nan)
        image = axes.imshow(
            shown, DIVERGING, vmin=-largest, vmax=largest, interpolation="none"
        )
        mean = np.abs(matrix[apart]).sum() / max(count * (count - 1), 1)
        axes.set_title(f"{fill(title, 32)}\nmean |cos| {mean:.3f}", size=7)
        size = 7 if count <= _NUMBERED else 5
        axes.set_xticks(range(count), tasks, rotation=90, size=size)
        axes.set_yticks(range(count), tasks, size=size)
        axes.grid(False)
        for i, j in np.argwhere(apart) if count <= _NUMBERED else ():
            text = f"{round(matrix[i, j], 2) + 0:.2f}".replace("0.", ".")
            axes.text(j, i, text, ha="center", va="center", size=6)
    for axes in panels.flat[len(matrices) :]:
        axes.set_visible(False)
    figure.colorbar(image, ax=panels, shrink=0.8, label="cosine")
    return figure
