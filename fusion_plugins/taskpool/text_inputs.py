"""What the text task pool is given: options per task, samples with labels, heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from fusion_bench.utils import instantiate
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification

from ..pools.families.sequence_classification import SequenceClassificationAdapter
from ..pools.samples import LABEL_COLUMNS, Samples, check_labels, opened, part
from ..pools.text import check_fields
from ..pools.tokens import TextEncoder, choose_length, texts_of
from .text_metrics import METRICS


class TestSets:
    """Labelled test sets, loaded and tokenised when first asked for.

    Args:
        listed: Task -> dataset or its config.
        options: Task -> ``fields`` and ``max_length``, both optional.
        load_tokenizer: Called once.
    """

    __test__ = False  # pytest takes the name for a test

    def __init__(
        self, listed: Mapping, options: Mapping, load_tokenizer: Callable[[], object]
    ):
        self._listed, self._options = listed, options
        self._load_tokenizer, self._tokenizer = load_tokenizer, None
        self._opened: dict[str, Any] = {}
        self._kept: dict[tuple, tuple[Tensor, Tensor]] = {}

    def encoded(
        self, task: str, limit: int | None
    ) -> tuple[TextEncoder, Tensor, Tensor]:
        """The encoder, samples (n, rows, length) in order of length, and labels (n,).

        Args:
            task: The task.
            limit: Tokens the model has positions for; None for no limit.

        Raises:
            ValueError: The set is empty, or a sample has no known text or no label.
        """
        if self._tokenizer is None:
            self._tokenizer = self._load_tokenizer()
        options = self._options.get(task, {})
        length = choose_length(self._tokenizer, limit, options.get("max_length"))
        encoder = TextEncoder(self._tokenizer, length)
        if (task, length) not in self._kept:
            read = partial(encoder, fields=options.get("fields"))
            self._kept[task, length] = _encode(self._samples(task, read))
        return encoder, *self._kept[task, length]

    def check(self) -> None:
        """Look at a few samples of every task, and at all labels where that is cheap.

        Raises:
            ValueError: A set is empty, or a sample has no known text or no label.
        """
        for task in self._listed:
            look = partial(texts_of, fields=self._options.get(task, {}).get("fields"))
            samples = self._samples(task, look)
            samples.check()
            labels = check_labels(task, samples.raw, LABEL_COLUMNS, _number)
            if set(labels) == {-1.0}:
                raise ValueError(
                    f"Task '{task}' has the label -1 (hidden test labels? use the"
                    " validation split) for every sample."
                )

    def _samples(self, task: str, read: Callable[[Any], Any]) -> Samples:
        if task not in self._opened:
            self._opened[task] = opened(self._listed[task])
        return Samples(task, self._opened[task], partial(_labelled, read=read))


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


def _labelled(sample: Any, read: Callable[[Any], Any]) -> tuple[Any, float]:
    return read(sample), _number(part(sample, LABEL_COLUMNS, 1))


def _number(label: Any) -> float:
    try:
        return float(label)
    except (TypeError, ValueError):
        raise ValueError(
            f"its label is {label!r}, expected a number. Turn names into numbers, for"
            " example with datasets' class_encode_column."
        ) from None


def _encode(samples: Samples) -> tuple[Tensor, Tensor]:
    """All samples, shape (n, rows, length), in order of length, and labels, (n,)."""
    bar = tqdm(range(len(samples)), desc=f"Tokenising {samples.task}", leave=False)
    rows, numbers = zip(*(samples[index] for index in bar), strict=True)
    stored, labels = torch.stack(rows), torch.tensor(numbers, dtype=torch.float64)
    order = stored[:, 1].sum(1).argsort(stable=True)  # little padding per batch
    return stored[order], labels[order]


def load_head(task: str, source: object) -> nn.Module:
    """The head of a model given by folder, hub name or config, or as it is."""
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
