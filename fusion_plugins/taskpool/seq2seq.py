"""A task pool for models that answer with words: Flan-T5 and its like."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from fusion_bench import BaseTaskPool, RuntimeConstants
from fusion_bench.tasks.flan_t5_text_generation.glue_evaluation import (
    evaluate_accuracy,
    evaluate_spearman_rho,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm
from transformers import default_data_collator

from ..common import get_logger
from ..common.upstream import saved_options
from ..merged.model import TintedModel
from ..pools.model_files import load_tokenizer
from .text_inputs import TextTestSets

log = get_logger(__name__)
_COLUMNS = ("input_ids", "attention_mask", "labels")


class _Writer:
    """A model that sees no padding, which transformers 5 shows it unless there is a mask.

    FusionBench gives none; transformers 4 made one itself.
    """

    def __init__(self, model: Any):
        self._model = model

    def eval(self) -> _Writer:
        self._model.eval()
        return self

    def generate(self, input_ids: Tensor, **options: Any) -> Tensor:
        mask = input_ids.ne(self._model.config.pad_token_id)
        return self._model.generate(input_ids, attention_mask=mask.long(), **options)


class Seq2SeqTaskPool(TextTestSets):
    """How often a model writes just the right answer, on every task.

    The numbers are those of FusionBench's ``FlanT5GLUETextGenerationTaskPool``, whose
    tasks do not bear the names of its experts: the share of answers that equal the label
    word for word, and Spearman's correlation where answers are numbers. A tinted model
    answers each task with its own layer.

    Args:
        test_datasets: Task -> dataset (or its config) of dicts with `input_ids`,
            `attention_mask` and `labels`, each of one length per task.
        tokenizer: A config, folder, hub name or object.
        regressions: Tasks whose answers are numbers.
        batch_size: Samples per forward; changes speed and memory only.

    Raises:
        TypeError, ValueError: An option is unknown or out of its range.
    """

    _config_mapping = saved_options(BaseTaskPool) | {
        "_test_datasets": "test_datasets",
        "_tokenizer": "tokenizer",
        "regressions": "regressions",
        "batch_size": "batch_size",
    }

    def __init__(
        self,
        test_datasets: Mapping,
        tokenizer: Any,
        regressions: Iterable[str] = ("stsb", "glue-stsb"),
        batch_size: int = 32,
        **kwargs: Any,
    ):
        self.regressions = list(regressions)
        super().__init__(test_datasets, tokenizer, batch_size, kwargs)

    def check_samples(self) -> None:
        """Raise a ValueError if a task has no samples or a column is missing."""
        for task in self._test_datasets:
            data = self._raw(task)
            if not len(data):
                raise ValueError(f"Task '{task}' has no test samples.")
            missing = [name for name in _COLUMNS if name not in data[0]]
            if missing:
                raise ValueError(
                    f"Task '{task}', sample 0 lacks {missing}; it has {list(data[0])}."
                    " FusionBench's load_glue_dataset gives all three."
                )

    @cached_property
    def _loaded_tokenizer(self) -> Any:
        return load_tokenizer(self)

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, name: str | None = None, **kwargs: Any
    ) -> dict:
        """Report `accuracy`, or `spearman_rho` of a regression, per task.

        Args:
            model: A tinted or any other encoder-decoder with ``generate``.
            name: Not used.
            **kwargs: Not used.

        Raises:
            ValueError: Data are missing or do not fit.
        """
        self.check_samples()
        model = self.fabric.to_device(model).eval()
        report = {}
        for task in tqdm(self._test_datasets, desc="Evaluating tasks", leave=False):
            if not isinstance(model, TintedModel):
                report[task] = self._evaluate_task(task, model)
                continue
            with model.for_task(task):
                report[task] = self._evaluate_task(task, model.trunk)
        log.info("Evaluation result: %s", report)
        return report

    def _evaluate_task(self, task: str, model: nn.Module) -> dict[str, float]:
        data, tokenizer = self._raw(task), self._loaded_tokenizer
        if RuntimeConstants.debug:
            data = Subset(data, range(min(self.batch_size, len(data))))
        loader = self.fabric.setup_dataloaders(
            DataLoader(data, self.batch_size, collate_fn=default_data_collator)
        )
        writer: Any = _Writer(model)
        if task not in self.regressions:
            return {"accuracy": evaluate_accuracy(writer, loader, tokenizer)}
        found = float(evaluate_spearman_rho(writer, loader, tokenizer))
        # Answers that are all equal have no rank, and no use.
        return {"spearman_rho": 0.0 if math.isnan(found) else found}
