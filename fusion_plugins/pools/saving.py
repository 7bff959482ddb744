"""What is saved with a merged model, and in what form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusion_bench import BaseModelPool
from fusion_bench.modelpool import CLIPVisionModelPool
from torch import nn

from ..common import get_logger
from ..common.upstream import program_of
from ..merged.cards import CARD, pool_card
from ..merged.model import TintedModel
from ..task_vectors.files import one_line
from .loading import PRETRAINED
from .model_files import load_tokenizer

log = get_logger(__name__)


class OwnFolders:
    """Saves a merged model with all that is needed to load, show and evaluate it."""

    def save_model(self, model: Any, path: str) -> None:
        """Write a model folder with processor or tokenizer, if the pool has one, and card."""
        pool: Any = self
        model.save_pretrained(path)
        images = isinstance(self, CLIPVisionModelPool)
        try:
            preparation = pool.load_processor() if images else load_tokenizer(pool)
        except (OSError, ValueError) as error:
            log.warning("The merged model is alone in %s: %s", path, one_line(error))
        else:
            preparation.save_pretrained(path)
        method = getattr(program_of(self), "method", None)
        _write_card(Path(path), model, pool, method)


def add_card(
    folder: Path, model: nn.Module, modelpool: BaseModelPool, method: Any = None
) -> None:
    """Write the card of a merged model that was just saved; own folders have one.

    Where it was saved as a file, there is no place for a card. The model's own card is
    taken if it has one, or the method's.
    """
    if folder.is_dir() and not isinstance(modelpool, OwnFolders):
        _write_card(folder, model, modelpool, method)


def _write_card(
    folder: Path, model: nn.Module, modelpool: BaseModelPool, method: Any
) -> None:
    card = getattr(model, "card", None) or getattr(method, "card", None)
    name = type(method).__name__ if method is not None else "Merge"
    (folder / CARD).write_text(card or pool_card(name, {}, modelpool))


def whole_clip(model: nn.Module, modelpool: BaseModelPool) -> Any:
    """A plain merged model of a CLIP pool as a ``CLIPModel``, with the base's text tower."""
    if not isinstance(modelpool, CLIPVisionModelPool) or isinstance(model, TintedModel):
        raise ValueError(
            "merged_model_save_kwargs.whole is for plain models of CLIP pools, not for a"
            f" {type(model).__name__} of a {type(modelpool).__name__}. Leave it out."
        )
    clip = modelpool.load_clip_model(PRETRAINED)
    clip.vision_model = getattr(model, "vision_model", model)
    return clip
