"""What AWD leaves behind for people: a JSON summary and a picture of the cosines."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from lightning import Fabric
from torch import Tensor

from ..common.charts import draw_cosines
from ..common.drawing import save_pictures
from ..common.logging import get_logger
from .disentangle import Disentanglement

log = get_logger(__name__)


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
