"""What the text task pool is given: options per task, samples with labels, heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from fusion_bench.utils import instantiate
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification

from ..modelpool.folders import accounted
from ..pools.families.sequence_classification import SequenceClassificationAdapter
from ..pools.text import check_fields
from ..pools.tokens import TextEncoder, choose_length
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
            listed = self._listed[task]
            configured = isinstance(listed, Mapping) and "_target_" in listed
            samples = instantiate(listed) if configured else listed
            if len(samples) == 0:
                raise ValueError(f"The test set of task '{task}' is empty.")
            fields = options.get("fields")
            self._kept[task, length] = _encode(task, samples, encoder, fields)
        return encoder, *self._kept[task, length]


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


def _encode(
    task: str, samples, encoder: TextEncoder, fields: Sequence[str] | None
) -> tuple[Tensor, Tensor]:
    """All samples, shape (n, rows, length), in order of length, and labels, (n,).

    Raises:
        ValueError: A sample has no known text or no label.
    """
    rows, labels = [], []
    for index in tqdm(range(len(samples)), desc=f"Tokenising {task}", leave=False):
        sample = samples[index]
        try:
            rows.append(encoder(sample, fields))
            labels.append(_label(sample))
        except ValueError as error:
            raise ValueError(f"Task '{task}', sample {index}: {error}") from error
    stored, labels = torch.stack(rows), torch.tensor(labels, dtype=torch.float64)
    order = stored[:, 1].sum(1).argsort(stable=True)  # little padding per batch
    return stored[order], labels[order]


def _label(sample: Mapping) -> float:
    for name in ("label", "labels"):
        if name in sample:
            return float(sample[name])
    raise ValueError(f"it has no label, only the fields {sorted(sample)}.")


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
