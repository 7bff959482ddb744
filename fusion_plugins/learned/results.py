"""Writing the results of a learned merge into its log folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fusion_bench import BaseModelPool
from torch import nn

from ..awd import report as awd_report
from ..awd.disentangle import Disentanglement
from ..common import get_logger, save_pictures
from ..pools.family import family_of
from ..selection import response
from ..selection.search import Search
from .artifacts import (
    SavedCoefficients,
    plot_coefficients,
    plot_history,
    save_coefficients,
)

log = get_logger(__name__)

MODEL = "merged_model"  # below a run's log folder


def save_results(
    folder: Path,
    result: SavedCoefficients,
    history: Sequence[Mapping[str, Any]],
    guard_history: Sequence[Mapping[str, Any]],
    samples: Mapping[str, int],
    disentanglement: Disentanglement | None,
    search: Search | None,
) -> None:
    """Write coefficients and history, and pictures of them where matplotlib is.

    Args:
        folder: The log folder.
        result: What was learned.
        history: Entries per logged step.
        guard_history: Entries per check of the guard.
        samples: Task name -> samples seen, each as often as it was drawn.
        disentanglement: What AWD removed, if anything.
        search: For the coefficients' start, if there was one.
    """
    save_coefficients(result, folder)
    if history:
        record = {"samples": samples, "steps": history, "guard": guard_history}
        (folder / "history.json").write_text(json.dumps(record))
    pictures = {"coefficients": partial(plot_coefficients, result)}
    if history:
        pictures["history"] = partial(plot_history, history, guard_history)
    save_pictures(folder, pictures, "the run")
    if disentanglement is not None:
        awd_report.save(disentanglement, folder)
    if search is not None:
        response.publish(search, {"score": "agreement"}, folder, "selection")
    log.debug("Results: %s", folder)


def save_model(modelpool: BaseModelPool, module: nn.Module, folder: Path) -> Path:
    """Write the merged model in the pool's own format.

    Returns:
        The folder for its card.
    """
    target = folder / MODEL
    family_of(modelpool).save_model(modelpool, module, target)
    return target if target.is_dir() else folder
