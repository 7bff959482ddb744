"""What all pools of text models share: a tokenizer, and samples to tokenise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from fusion_bench.modelpool import BaseModelPool
from torch import Tensor, nn

from .loading import load_base
from .model_files import load_tokenizer, local_folder
from .samples import SampledAdapter
from .tokens import (
    TextEncoder,
    choose_length,
    position_limit,
    texts_of,
    token_rows,
)

_KNOWN = {"fields", "max_length"}


class TextAdapter(SampledAdapter):
    """Pools whose samples are text.

    `task_info` of a task, all optional: ``{fields: [review], max_length: 128}``.

    Raises:
        ValueError: `task_info` holds something else.
    """

    #: The pool class whose way of loading is known: files can be read in its place.
    loaded_by: ClassVar[type[BaseModelPool]]

    @classmethod
    def files(cls, modelpool: BaseModelPool, name: str) -> Path | None:
        return local_folder(modelpool, name, cls.loaded_by)

    def __init__(self, modelpool: BaseModelPool, task_info: Mapping | None = None):
        super().__init__(modelpool, task_info)
        for task, info in self.task_info.items():
            if not isinstance(info, Mapping) or set(info) - _KNOWN:
                raise ValueError(
                    f"tasks.{task} is {info!r}, expected fields (a list of one or two"
                    " names of text fields) and max_length (tokens), both optional."
                )
            check_fields(task, info.get("fields"))

    def prepare(self, device: torch.device) -> None:
        self.device = device
        tokenizer = load_tokenizer(self.modelpool)
        base = load_base(self.modelpool)
        self.check_base(base, tokenizer)
        self._choose_lengths(base, tokenizer)

    def _choose_lengths(self, base: nn.Module, tokenizer: Any) -> None:
        """Tokens per sample of each task, and the encoder that holds the longest."""
        limit = position_limit(base)
        self._lengths = {
            task: choose_length(
                tokenizer, limit, self.task_info.get(task, {}).get("max_length")
            )
            for task in self.tasks
        }
        longest = max(self._lengths.values())
        self._encoder = TextEncoder(tokenizer, longest, token_rows(base))

    def check_base(self, base: nn.Module, tokenizer: Any) -> None:
        """Whether the pretrained model is one that this family knows."""

    def fields(self, task: str | None, sample: Any) -> Sequence[str] | None:
        """Names of a sample's text fields; None to find them among the usual ones."""
        return self.task_info.get(task, {}).get("fields")

    def look(self, task: str, sample: Any) -> object:
        return texts_of(sample, self.fields(task, sample))

    def read(self, task: str | None, sample: Any) -> Tensor:
        """Shape (rows, max_length), int32."""
        fields = self.fields(task, sample)
        return self._encoder(sample, fields, self._lengths.get(task))

    def decode(self, stored: Tensor) -> Tensor:
        """Padding is cut off later: tasks' batches must agree in shape until then."""
        return stored


def check_fields(task: str, fields: Any) -> None:
    """Raise unless `fields` is None or one or two names."""
    if fields is None:
        return
    named = not isinstance(fields, str) and all(isinstance(f, str) for f in fields)
    if not named or len(fields) not in (1, 2):
        raise ValueError(
            f"tasks.{task}.fields is {fields!r}, expected a list of one or two names of"
            " text fields."
        )
