"""Build a pool of text experts; a build that was stopped goes on where it was."""

from __future__ import annotations

import csv
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)

from .image_build import fit
from .pool_folder import build_folder, save_model
from .recipe import TextRecipe
from .text_data import TextTask, fingerprint

_WARM_UP = 0.1  # share of the steps
_SORTED_TOGETHER = 8  # batches
_EVALUATED_AT_ONCE = 128


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


def load_classifier(encoder: Path, classes: int, seed: int) -> PreTrainedModel:
    """The encoder with a new head, drawn from the seed.

    Raises:
        ValueError: Transformers cannot make a sequence classifier of the folder, or
            weights of the encoder are missing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model, found = AutoModelForSequenceClassification.from_pretrained(
                encoder, num_labels=classes, output_loading_info=True
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise ValueError(f"{encoder} holds no usable encoder: {error}") from error
    prefix = f"{model.base_model_prefix}."
    missing = {key for key in found["missing_keys"] if key.startswith(prefix)}
    # Many encoders have no pooler.
    new = [k for k in model.state_dict() if k in missing and ".pooler." not in k]
    if new:
        raise ValueError(
            f"{encoder} has no weights for {len(new)} tensors of the encoder, such as"
            f" {new[0]}; save it with save_pretrained of the library that trained it"
        )
    return model


def steps_of(recipe: TextRecipe, task: TextTask) -> int:
    """Training steps of one expert."""
    count = min(len(task.train), recipe.train_sentences)
    return recipe.epochs * -(-count // recipe.batch_size)


def train_expert(
    encoder: Path,
    tokenizer: PreTrainedTokenizerBase,
    task: TextTask,
    recipe: TextRecipe,
    on_step: Callable[[], None],
) -> PreTrainedModel:
    """An expert of one task: all weights are trained, with dropout.

    The result depends on recipe and task alone, not on which experts came before.
    """
    seed = recipe.seed + zlib.crc32(task.name.encode())
    model = load_classifier(encoder, task.classes, seed)
    decay, steps = recipe.weight_decay, steps_of(recipe, task)
    adamw = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=decay)
    rising = max(1, round(_WARM_UP * steps))
    schedule = get_linear_schedule_with_warmup(adamw, rising, steps)
    batches = _batches(task.train, recipe, seed)

    def loss() -> Tensor:
        rows = next(batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
            logits = model(**_inputs(rows, tokenizer, recipe)).logits.float()
        labels = torch.tensor([row["label"] for row in rows])
        return nn.functional.cross_entropy(logits, labels)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fit(model, loss, steps, adamw, schedule, on_step)
    return model


def _batches(
    rows: Sequence[dict], recipe: TextRecipe, seed: int
) -> Iterator[list[dict]]:
    """Shuffled batches of sentences of like length, so that little padding is computed."""
    draw = np.random.default_rng(seed)
    chosen = draw.permutation(len(rows))[: recipe.train_sentences]
    for _ in range(recipe.epochs):
        order = draw.permutation(chosen).tolist()
        batches = []
        for group in _chunks(order, recipe.batch_size * _SORTED_TOGETHER):
            group = sorted(group, key=lambda index: len(rows[index]["text"]))
            batches += _chunks(group, recipe.batch_size)
        for number in draw.permutation(len(batches)):
            yield [rows[index] for index in batches[number]]


def _chunks(items: list, size: int) -> list[list]:
    return [items[at : at + size] for at in range(0, len(items), size)]


def _inputs(
    rows: Sequence[dict], tokenizer: PreTrainedTokenizerBase, recipe: TextRecipe
) -> dict[str, Tensor]:
    return tokenizer(
        [row["text"] for row in rows],
        padding=True,
        truncation=True,
        max_length=recipe.max_length,
        return_tensors="pt",
    )


@torch.no_grad()
def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: TextTask,
    recipe: TextRecipe,
) -> float:
    """Share of right test sentences, 0 to 1."""
    rows = sorted(task.test, key=lambda row: len(row["text"]))  # little padding
    right = 0
    for part in _chunks(rows, _EVALUATED_AT_ONCE):
        found = model(**_inputs(part, tokenizer, recipe)).logits.argmax(-1)
        right += int((found == torch.tensor([row["label"] for row in part])).sum())
    return right / len(rows)
