"""Writing the results of a learned merge into its log folder."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from ..awd import report as awd_report
from ..common.logging import get_logger
from ..merged.cards import model_card
from ..pools import PoolAdapter, family_of
from .artifacts import plot_coefficients, plot_history, save_coefficients

log = get_logger(__name__)


def save_results(owner, modelpool, module: nn.Module, folder: Path) -> None:
    """Coefficients, pictures, history, and the merged model with its card.

    Args:
        owner: The algorithm, after its run.
        modelpool: Saves the model in its own format.
        module: The merged model.
        folder: The log folder.
    """
    save_coefficients(owner.result, folder)
    plot_coefficients(owner.result, folder / "coefficients.png")
    if owner.history:
        plot_history(owner.history, owner.guard_history, folder / "history.png")
        record = {"steps": owner.history, "guard": owner.guard_history}
        (folder / "history.json").write_text(json.dumps(record))
    if owner.disentanglement is not None:
        awd_report.save(owner.disentanglement, folder)
    card = results_card(owner, modelpool)
    if owner.save_model:
        target = folder / "merged_model"
        (family_of(modelpool) or PoolAdapter).save_model(modelpool, module, target)
        card_folder = target if target.is_dir() else folder
    else:
        card_folder = folder
    (card_folder / "README.md").write_text(card)
    log.info("Results: %s", folder)


def results_card(owner, modelpool) -> str:
    """The model card of a run, Markdown."""
    return model_card(
        f"{owner.label} of {', '.join(owner.result.tasks)}",
        owner.settings(),
        (
            {name: str(modelpool._models[name]) for name in modelpool.all_model_names}
            if not modelpool.has_instance_models
            else dict.fromkeys(modelpool.all_model_names, "a model in memory")
        ),
        owner.card_notes(),
    )
