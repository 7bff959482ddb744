"""What the text task pool is given: options per task, samples with labels, heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from fusion_bench.utils import instantiate
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification

from ..modelpool.folders import accounted
from ..pools.families.sequence_classification import SequenceClassificationAdapter
from ..pools.samples import LABEL_COLUMNS, Samples, check_labels, part
from ..pools.text import check_fields
from ..pools.tokens import texts_of
from .text_metrics import METRICS


def check_task(task: str, info: object) -> None:
    """Raise unless a task's options are known."""
    if not isinstance(info, Mapping) or set(info) - {"fields", "max_length", "metrics"}:
        raise ValueError(
            f"tasks.{task} is {info!r}, expected fields, max_length and metrics, all"
            " optional."
        )
    check_fields(task, info.get("fields"))
    unknown = [name for name in info.get("metrics") or () if name not in METRICS]
    if unknown:
        raise ValueError(
            f"tasks.{task}.metrics has {unknown}; known beside accuracy: {list(METRICS)}."
        )


def labelled_texts(task: str, raw: Any, read: Callable[[Any], Any]) -> Samples:
    """A test set seen through a reader of its texts, each with its label."""
    return Samples(task, raw, partial(_labelled, read=read))


def _labelled(sample: Any, read: Callable[[Any], Any]) -> tuple[Any, float]:
    return read(sample), _number(part(sample, LABEL_COLUMNS, 1))


def _number(label: Any) -> float:
    try:
        number = float(label)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"its label is {label!r}, expected a number. Turn names into numbers, for"
            " example with datasets' class_encode_column."
        )
    return number


def check_texts(task: str, raw: Any, fields: Sequence[str] | None) -> list[float]:
    """Look at a few samples of a test set, and at all labels where that is cheap.

    Returns:
        The labels, where all were looked at.

    Raises:
        ValueError: It is empty, or a sample has no known text or no label.
    """
    labelled_texts(task, raw, partial(texts_of, fields=fields)).check()
    labels = check_labels(task, raw, LABEL_COLUMNS, _number)
    if set(labels) == {-1.0}:
        raise ValueError(
            f"Task '{task}' has the label -1 (hidden test labels? use the validation"
            " split) for every sample."
        )
    return labels


def encoded(samples: Samples) -> tuple[Tensor, Tensor]:
    """All samples, shape (n, rows, length), in order of length, and labels, (n,)."""
    bar = tqdm(range(len(samples)), desc=f"Tokenising {samples.task}", leave=False)
    rows, numbers = zip(*(samples[index] for index in bar), strict=True)
    stored, labels = torch.stack(rows), torch.tensor(numbers, dtype=torch.float64)
    order = stored[:, 1].sum(1).argsort(stable=True)  # little padding per batch
    return stored[order], labels[order]


def load_head(task: str, source: object) -> nn.Module:
    """The head of a model given by folder, hub name or config, or as it is."""
    with accounted(f"heads.{task}", SequenceClassificationAdapter.head_site):
        if isinstance(source, str):
            model = AutoModelForSequenceClassification.from_pretrained(source)
        else:
            model = instantiate(source) if isinstance(source, Mapping) else source
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"heads.{task} is {source!r}, expected a folder or hub name, a model's config,"
            " or a model."
        )
    head = model.get_submodule(SequenceClassificationAdapter.head_site(model))
    return head.eval()
