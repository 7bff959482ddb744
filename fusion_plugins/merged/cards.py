"""Model cards: how a merged model came about, with the hub's metadata."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from fusion_bench import BaseModelPool
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..common import get_logger
from ..common.upstream import models_of
from ..modelpool.folders import source_of
from ..task_vectors.files import one_line
from .replacing import CONFIG, TRUNK

log = get_logger(__name__)
CARD = "README.md"
_PACKAGES = ("fusion-plugins", "fusion-bench", "torch", "transformers", "lightning")


def pool_card(
    label: str,
    settings: Mapping[str, Any],
    modelpool: BaseModelPool,
    notes: Sequence[str] = (),
) -> str:
    """The card of a model merged from a pool, Markdown with metadata.

    The settings are all options; `notes` are sentences to say first.
    """
    sources = {n: source_of(models_of(modelpool)[n]) for n in modelpool.all_model_names}
    title = f"{label} of {', '.join(modelpool.model_names)}"
    return model_card(title, label, settings, sources, notes)


def model_card(
    title: str,
    label: str,
    settings: Mapping[str, Any],
    sources: Mapping[str, str | None],
    notes: Sequence[str] = (),
) -> str:
    """As :func:`pool_card`, of folders or hub names; None is a model in memory."""
    public = {n: None if s is None else public_name(s) for n, s in sources.items()}
    licences = sorted({x for s in sources.values() if s for x in _licences(Path(s))})
    data = ModelCardData(
        model_name=title,
        base_model=list(dict.fromkeys(filter(None, public.values()))) or None,
        base_model_relation="merge",
        library_name="transformers",
        license=licences[0] if len(licences) == 1 else "other" if licences else None,
        license_name=", ".join(licences) if len(licences) > 1 else None,
        tags=["merge", "fusion-plugins", "_".join(label.lower().split())],
    )
    lines = [f"# {title}", "", *notes, *[""] * bool(notes), "## Merged from", ""]
    lines += [f"- `{n}`: {name or 'a model in memory'}" for n, name in public.items()]
    lines += ["", "## Method", "", "```yaml"]
    lines += [
        f"{key}: {json.dumps(_public(value), default=str)}"
        for key, value in settings.items()
    ]
    lines += ["```", "", "## Made with", "", *_made_with(), ""]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines)


@cache  # a version is read from a file
def _made_with() -> list[str]:
    versions = [f"- {name} {version(name)}" for name in _PACKAGES]
    return [*versions, f"- Python {platform.python_version()}"]


def note_scores(folder: Path, scores: Mapping[str, tuple[str, float]]) -> None:
    """Add what an evaluation measured to the card in a saved model's folder.

    The scores are data set -> a metric's name, such as accuracy, and its value. A card
    that cannot be read, such as a user's own, stays as it is.
    """
    card = _read_card(folder / CARD)
    if card is None:
        return
    card.data.model_name = card.data.model_name or folder.name
    card.data.eval_results = [
        EvalResult(
            task_type=_task_type(folder),
            dataset_type=task,
            dataset_name=task,
            metric_type=metric,
            metric_value=value,
        )
        for task, (metric, value) in scores.items()
    ]
    card.save(folder / CARD)


def _task_type(folder: Path) -> str:
    """What the hub calls the tasks of a saved model, which a tinted one has in a trunk."""
    files = [f for f in (folder / TRUNK / CONFIG, folder / CONFIG) if f.is_file()]
    is_text = bool(files) and "vocab_size" in json.loads(files[0].read_text())
    return f"{'text' if is_text else 'image'}-classification"


def public_name(source: str) -> str:
    """A hub id as it is, also one in the hub's cache; of a folder its name."""
    path = Path(source)
    cached = [part for part in path.parts if part.startswith("models--")]
    if cached:
        return cached[0].removeprefix("models--").replace("--", "/")
    return path.resolve().name if path.is_dir() or path.is_absolute() else source


def _public(value: Any) -> Any:
    """Options without paths of the machine."""
    if isinstance(value, Mapping):
        return {key: _public(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_public(v) for v in value]
    path = isinstance(value, str | Path) and Path(value).is_absolute()
    return Path(value).name if path else value


def _licences(folder: Path) -> Iterable[str]:
    """What the card in a folder names; nothing where there is none, or it is damaged."""
    card = _read_card(folder / CARD)
    given = None if card is None else card.data.license
    names = given if isinstance(given, list) else [given] if given else []
    if all(isinstance(name, str) for name in names):
        return names
    log.warning("%s names the licence %r, not a text; left out.", folder / CARD, given)
    return []


def _read_card(file: Path) -> Any:
    try:
        known = file.is_file()
        return ModelCard.load(file, ignore_metadata_errors=True) if known else None
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        log.warning("%s cannot be read: %s", file, one_line(error)[:200])
        return None
