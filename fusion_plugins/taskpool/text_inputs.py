"""What the text task pool is given: options per task, samples with labels, heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from fusion_bench import BaseTaskPool, LightningFabricMixin
from fusion_bench.utils import instantiate
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification

from ..common.options import reject_unknown, require_integer
from ..common.upstream import saved_options
from ..modelpool.folders import accounted
from ..pools.families.sequence_classification import SequenceClassificationAdapter
from ..pools.labels import LABEL_COLUMNS, check_labels, part
from ..pools.samples import Samples, opened
from ..pools.text import check_fields
from ..pools.tokens import texts_of
from .text_metrics import METRICS


class TextTestSets(LightningFabricMixin, BaseTaskPool):
    """What text task pools have in common: test sets, opened once, and a tokenizer."""

    def __init__(
        self, test_datasets: Mapping, tokenizer: Any, batch_size: int, kwargs: Mapping
    ):
        reject_unknown(type(self).__name__, kwargs, list(saved_options(self).values()))
        if not test_datasets:
            raise ValueError("test_datasets is empty: there is no task to evaluate on.")
        require_integer("batch_size", batch_size, 1)
        self._test_datasets, self._tokenizer = test_datasets, tokenizer
        self.batch_size = batch_size
        self._opened: dict[str, Any] = {}
        super().__init__(**kwargs)

    def _raw(self, task: str) -> Any:
        if task not in self._opened:
            self._opened[task] = opened(self._test_datasets[task])
        return self._opened[task]


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
    """Look at a few samples of a test set; all labels, where reading them is cheap."""
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
