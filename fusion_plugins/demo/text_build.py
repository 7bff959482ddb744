"""Build a pool of text experts; a build that was stopped goes on where it was."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from .pool_folder import build_folder, save_model
from .recipe import TextRecipe
from .text_data import TextTask, fingerprint
from .text_training import accuracy, load_classifier, steps_of, train_expert


def build_text_pool(
    encoder: str | os.PathLike,
    tasks: Sequence[TextTask],
    root: str | os.PathLike,
    recipe: TextRecipe | None = None,
) -> Path:
    """Fine-tune one expert per task and save the pool at `root`; see `build_folder`.

    A stopped build of the same encoder, tasks and recipe keeps its finished experts, so
    it loses at most one.

    Args:
        encoder: Model folder of a pretrained encoder with its tokenizer.
        tasks: What to fine-tune on.
        root: The new folder; must not exist or be empty.
        recipe: How to (default: ``TextRecipe()``).

    Raises:
        ValueError: `root` holds something else, or `encoder` cannot be used.
    """
    recipe, encoder = recipe or TextRecipe(), Path(encoder)
    tokenizer = _tokenizer(encoder)

    def write(folder: Path) -> dict:
        return _write_pool(folder, encoder, tokenizer, tasks, recipe)

    mark = fingerprint(recipe, tasks, encoder)
    return build_folder(root, recipe, write, resume=mark)


def _tokenizer(encoder: Path) -> PreTrainedTokenizerBase:
    if not (encoder / "config.json").is_file():
        raise ValueError(
            f"{encoder} is not a model folder (it has no config.json); give the folder of"
            " a pretrained encoder such as BERT, with its tokenizer"
        )
    try:
        return AutoTokenizer.from_pretrained(encoder)
    except (OSError, ValueError) as error:
        raise ValueError(f"{encoder} has no usable tokenizer: {error}") from error


def _write_pool(
    folder: Path,
    encoder: Path,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[TextTask],
    recipe: TextRecipe,
) -> dict:
    if not (folder / "pretrained").is_dir():
        base = load_classifier(encoder, 2, recipe.seed)
        save_model(folder / "pretrained", base, tokenizer)
    scores = {}
    with tqdm(total=sum(steps_of(recipe, t) for t in tasks), unit="step") as bar:
        for task in tasks:
            bar.set_description(f"Fine-tuning on {task.name}")
            place = folder / "experts" / task.name
            if place.is_dir():
                bar.update(steps_of(recipe, task))
                load = AutoModelForSequenceClassification.from_pretrained
                model = load(place).eval()
            else:
                model = train_expert(encoder, tokenizer, task, recipe, bar.update)
                save_model(place, model, tokenizer)
            scores[task.name] = accuracy(model, tokenizer, task, recipe)
            _save_data(folder / "data" / task.name, task)
    config = json.loads((encoder / "config.json").read_text(encoding="utf-8"))
    return {
        "encoder": config.get("_name_or_path", encoder.name),
        "tasks": {task.name: _about(task) for task in tasks},
        "accuracy": {"experts": scores},
    }


def _about(task: TextTask) -> dict[str, int]:
    sentences = {"train_sentences": len(task.train), "test_sentences": len(task.test)}
    return {"classes": task.classes, **sentences}


def _save_data(folder: Path, task: TextTask) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        with open(folder / f"{split}.tsv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(
                file, "excel-tab", quoting=csv.QUOTE_NONE, quotechar=None
            )
            writer.writerow(["label", "text"])
            rows = getattr(task, split)
            writer.writerows([row["label"], row["text"]] for row in rows)
