"""Keeping merged models, and what was measured of them."""

from __future__ import annotations

from pathlib import Path

from fusion_bench import BaseAlgorithm, BaseModelPool
from torch import nn

from ..merged.cards import CARD, note_scores
from ..pools.saving import add_card
from .evaluation import Scores
from .files import slug


def save_merged(
    modelpool: BaseModelPool,
    method: BaseAlgorithm,
    folder: Path,
    part: str | None,
    model: nn.Module,
    scores: Scores,
) -> None:
    """Write a merged model with the model pool's own means, and its card."""
    name = "merged_model" if part is None else f"merged_model.{slug(part)}"
    folder.mkdir(parents=True, exist_ok=True)
    modelpool.save_model(model, str(folder / name))
    add_card(folder / name, model, modelpool, method)
    if (folder / name / CARD).is_file():
        note_main_scores(folder / name, scores)


def note_main_scores(folder: Path, scores: Scores) -> None:
    """Write the main metric of every task into a saved model's card."""
    main, own = scores.metric, scores.metrics
    found = {t: (own.get(t, main), v[main]) for t, v in scores.tasks.items()}
    note_scores(folder, found)
