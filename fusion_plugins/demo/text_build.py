"""Build a pool of text experts; a build that was stopped goes on where it was."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..common.logging import get_logger
from .build import POOL_FILE
from .recipe import DemoInputError
from .text_recipe import TEXT_FORMAT, TextRecipe, TextTask, fingerprint
from .text_training import accuracy, load_classifier, steps_of, train_expert

log = get_logger(__name__)


def build_text_pool(
    encoder: str | os.PathLike,
    tasks: Sequence[TextTask],
    root: str | os.PathLike,
    recipe: TextRecipe | None = None,
) -> Path:
    """Fine-tune one expert per task and save the pool at `root`.

    Everything is written to ``.NAME.building`` beside `root`, which is renamed at the
    end; finished experts in there are kept, so a stopped build loses at most one.

    Args:
        encoder: Model folder of a pretrained encoder with its tokenizer.
        tasks: What to fine-tune on.
        root: The new folder; must not exist or be empty.
        recipe: How to (default: ``TextRecipe()``).

    Raises:
        DemoInputError: `root` holds something, an unfinished build beside it is of
            another recipe, or `encoder` cannot be used.
    """
    recipe, root, encoder = recipe or TextRecipe(), Path(root).absolute(), Path(encoder)
    check_free(root)
    tokenizer = _tokenizer(encoder)
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.with_name(f".{root.name}.lock")):
        check_free(root)
        folder = root.with_name(f".{root.name}.building")
        _claim(folder, fingerprint(recipe, tasks, encoder))
        _save_base(folder, encoder, tokenizer, recipe)
        scores = _train_missing(folder, encoder, tokenizer, tasks, recipe)
        for task in tasks:
            _save_data(folder / "data" / task.name, task)
        _describe(folder, encoder, recipe, tasks, scores)
        if root.is_dir():
            root.rmdir()  # empty
        os.replace(folder, root)
    log.info("Built the text pool %s", root)
    return root


def check_free(root: Path) -> None:
    """Refuse a folder that holds anything.

    Raises:
        DemoInputError: It does.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DemoInputError(
            f"{root} exists and is not an empty folder; choose another"
        )


def _tokenizer(encoder: Path) -> PreTrainedTokenizerBase:
    if not (encoder / "config.json").is_file():
        raise DemoInputError(
            f"{encoder} is not a model folder (it has no config.json); give the folder of"
            " a pretrained encoder such as BERT, with its tokenizer"
        )
    try:
        return AutoTokenizer.from_pretrained(encoder)
    except (OSError, ValueError) as error:
        raise DemoInputError(f"{encoder} has no usable tokenizer: {error}") from error


def _claim(folder: Path, mark: str) -> None:
    """Start the unfinished folder, or go on with one of the same recipe."""
    file = folder / "recipe"
    if folder.is_dir() and any(folder.iterdir()):
        if not file.is_file() or file.read_text() != mark:
            raise DemoInputError(
                f"{folder} is an unfinished build from other data, encoder or options;"
                " finish that one with its own options, or delete the folder"
            )
        log.info("Going on with the unfinished build %s", folder)
    folder.mkdir(exist_ok=True)
    file.write_text(mark)


def _save_base(folder: Path, encoder: Path, tokenizer, recipe: TextRecipe) -> None:
    if not (folder / "pretrained").is_dir():
        base = load_classifier(encoder, 2, recipe.seed)
        _save(folder / "pretrained", base, tokenizer)


def _save(folder: Path, model, tokenizer) -> None:
    """All or nothing: a folder of the final name is complete."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    os.replace(unfinished, folder)


def _train_missing(
    folder: Path, encoder: Path, tokenizer, tasks: Sequence[TextTask], recipe
) -> dict[str, dict]:
    scores = {}
    total = sum(steps_of(recipe, task) for task in tasks)
    (folder / "experts").mkdir(exist_ok=True)
    with tqdm(total=total, unit="step") as bar:
        for task in tasks:
            bar.set_description(f"Fine-tuning on {task.name}")
            note = folder / "experts" / f"{task.name}.json"
            if note.is_file():
                bar.update(steps_of(recipe, task))
            else:
                start = time.monotonic()
                model = train_expert(encoder, tokenizer, task, recipe, bar.update)
                score = accuracy(model, tokenizer, task, recipe)
                seconds = round(time.monotonic() - start, 1)
                if not (note.parent / task.name).is_dir():
                    _save(note.parent / task.name, model, tokenizer)
                note.write_text(json.dumps({"accuracy": score, "seconds": seconds}))
            scores[task.name] = json.loads(note.read_text())
    return scores


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


def _describe(folder: Path, encoder: Path, recipe: TextRecipe, tasks, scores) -> None:
    description = {
        "format_version": TEXT_FORMAT,
        "encoder": json.loads((encoder / "config.json").read_text()).get(
            "_name_or_path", encoder.name
        ),
        "recipe": recipe.to_dict(),
        "tasks": {
            task.name: {
                "classes": task.classes,
                "train_sentences": len(task.train),
                "test_sentences": len(task.test),
            }
            for task in tasks
        },
        "accuracy": {"experts": {n: s["accuracy"] for n, s in scores.items()}},
        "build_seconds": round(sum(s["seconds"] for s in scores.values()), 1),
    }
    (folder / "recipe").unlink()
    for task in tasks:
        (folder / "experts" / f"{task.name}.json").unlink()
    (folder / POOL_FILE).write_text(json.dumps(description, indent=2) + "\n")
