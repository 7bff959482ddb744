"""A task pool for text classifiers of the BERT and RoBERTa kind."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from fusion_bench import BaseTaskPool, RuntimeConstants
from fusion_bench.utils import count_parameters
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..common import get_logger
from ..common.upstream import modelpool_of, models_of, saved_options
from ..merged.model import TintedModel
from ..merged.sites import replaced
from ..pools.families.sequence_classification import SequenceClassificationAdapter
from ..pools.model_files import load_tokenizer
from ..pools.own_heads import check_head_order, head_config
from ..pools.task_heads import load_own_head
from ..pools.tokens import TextEncoder, choose_length, position_limit, token_rows
from .text_inputs import (
    TextTestSets,
    check_task,
    check_texts,
    encoded,
    labelled_texts,
    load_head,
)
from .text_metrics import averages, class_numbers, measure

log = get_logger(__name__)


class SequenceClassificationTaskPool(TextTestSets):
    """Accuracy, loss and calibration of a merged text classifier on every task.

    A tinted model brings its tasks' heads. For any other model the head of each task
    comes from `heads`, or from the experts in the running program's model pool.

    Args:
        test_datasets: Task -> dataset (or its config) of dicts with text and `label`.
        tokenizer: A config, folder, hub name or object; None: that of the running
            program's model pool.
        heads: Task -> folder, hub name, config or model whose head to use.
        tasks: Task -> ``{fields: [...], max_length: N, metrics: [...]}``, all optional;
            metrics beside accuracy are GLUE's own by the task's name.
        batch_size: Samples per forward; changes speed and memory only.

    Raises:
        TypeError, ValueError: An option is unknown or out of its range.
    """

    _config_mapping = saved_options(BaseTaskPool) | {
        "_test_datasets": "test_datasets",
        "_tokenizer": "tokenizer",
        "heads": "heads",
        "tasks": "tasks",
        "batch_size": "batch_size",
    }

    def __init__(
        self,
        test_datasets: Mapping,
        tokenizer: Any = None,
        heads: Mapping | None = None,
        tasks: Mapping | None = None,
        batch_size: int = 64,
        **kwargs: Any,
    ):
        super().__init__(test_datasets, tokenizer, batch_size, kwargs)
        self.heads, self.tasks = heads, tasks
        self._check_names("heads", heads)
        self._check_names("tasks", tasks)
        for task, info in (tasks or {}).items():
            check_task(task, info)
        self._kept: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def _check_names(self, option: str, given: Mapping | None) -> None:
        unknown = [task for task in given or {} if task not in self._test_datasets]
        if unknown:
            raise ValueError(
                f"`{option}` names {unknown}, but test_datasets has"
                f" {list(self._test_datasets)}."
            )

    @cached_property
    def _loaded_tokenizer(self) -> Any:
        if self._tokenizer is not None:
            return load_tokenizer(self)
        modelpool = modelpool_of(self)
        if modelpool is None:
            raise ValueError(
                "The task pool has no tokenizer: set taskpool.tokenizer to the one of the"
                " models, a folder or hub name."
            )
        return load_tokenizer(modelpool)

    # -- heads --------------------------------------------------------------------

    @contextmanager
    def _with_head(self, model: nn.Module, task: str) -> Iterator[None]:
        """The model with one task's head in place, as it was afterwards."""
        if isinstance(model, TintedModel):
            with model.for_task(task):
                yield
            return
        site = SequenceClassificationAdapter.head_site(model)
        head = self._head(task, site)
        with replaced(
            model, {} if head is None else {site: self.fabric.to_device(head)}
        ):
            yield

    def _head(self, task: str, site: str) -> nn.Module | None:
        """A task's head; None to take the model's own, of a single task."""
        modelpool = modelpool_of(self)
        if self.heads and task in self.heads:
            return load_head(task, self.heads[task])
        if modelpool is not None and task in modelpool.model_names:
            return load_own_head(modelpool, task, site)
        if len(self._test_datasets) == 1 and not self.heads:
            return None
        raise ValueError(
            f"There is no head for task '{task}': a merged trunk needs the experts' heads."
            " Set taskpool.heads={"
            f"{task}: <the expert's folder or hub name>"
            "}, run with a model pool that has this expert, or evaluate a tinted model."
        )

    # -- numbers ------------------------------------------------------------------

    def check_samples(self) -> None:
        """Raise a ValueError if texts are missing, or labels are not those of the heads."""
        _ = self._loaded_tokenizer  # which says so if there is none
        experts = models_of(modelpool_of(self), {})
        for task in self._test_datasets:
            raw = self._raw(task)
            labels = check_texts(task, raw, self._info(task).get("fields"))
            config = head_config((self.heads or {}).get(task, experts.get(task)))
            if config is not None:
                check_head_order(task, raw, config)
                if config.num_labels > 1:
                    class_numbers(task, torch.tensor(labels), config.num_labels)

    def _info(self, task: str) -> Mapping:
        return (self.tasks or {}).get(task, {})

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, name: str | None = None, **kwargs: Any
    ) -> dict:
        """Report per task, `average` and `model_info`, as FusionBench's pools do.

        Args:
            model: A tinted model, or any ``*ForSequenceClassification``; not changed.
            name: Noted in `model_info`.
            **kwargs: Not used.

        Returns:
            Task -> scores (see :func:`~.text_metrics.measure`); `average` also has
            `score`, the mean of what GLUE counts of each task.

        Raises:
            ValueError: Head, tokenizer or data are missing or do not fit.
        """
        self.check_samples()
        trained, everything = count_parameters(model)
        info = {
            "trainable_params": trained,
            "all_params": everything,
            "trainable_percentage": trained / everything,
        }
        if name is not None:
            info["name"] = name
        if isinstance(model, TintedModel):
            info["tints"] = model.parameter_report()
        model = self.fabric.to_device(model).eval()
        scores = {}
        for task in tqdm(self._test_datasets, desc="Evaluating tasks", leave=False):
            with self._with_head(model, task):
                scores[task] = self._evaluate_task(task, model)
        report = {"model_info": info, **scores, "average": averages(scores)}
        log.info("Evaluation result: %s", report)
        self._save(report)
        return report

    def _encoded(
        self, task: str, model: nn.Module
    ) -> tuple[TextEncoder, Tensor, Tensor]:
        """The encoder of a task, and its test set, for models of this one's size."""
        tokenizer, info = self._loaded_tokenizer, self._info(task)
        limit = position_limit(model)
        length = choose_length(tokenizer, limit, info.get("max_length"))
        encoder = TextEncoder(tokenizer, length, token_rows(model))
        if (task, length) not in self._kept:
            read = partial(encoder, fields=info.get("fields"))
            texts = labelled_texts(task, self._raw(task), read)
            self._kept[task, length] = encoded(texts)
        return encoder, *self._kept[task, length]

    def _evaluate_task(self, task: str, model: nn.Module) -> dict[str, float]:
        encoder, samples, labels = self._encoded(task, model)
        starts = range(0, len(samples), self.batch_size)
        if RuntimeConstants.debug:
            starts = starts[:1]
        logits = []
        for at in tqdm(starts, desc=f"Evaluating {task}", leave=False):
            part = samples[at : at + self.batch_size].to(self.fabric.device)
            with self.fabric.autocast():
                logits.append(model(**encoder.unpack(part)).logits.cpu())
        found = torch.cat(logits)
        return measure(
            task, found, labels[: len(found)], self._info(task).get("metrics")
        )

    def _save(self, report: dict) -> None:
        """Into the log folder, like FusionBench's pools, never over an older report."""
        if not (self.fabric.is_global_zero and self.fabric.loggers):
            return
        folder = Path(self.log_dir)
        names = (f"report_{n}.json" if n else "report.json" for n in itertools.count())
        path = next(folder / name for name in names if not (folder / name).exists())
        path.write_text(json.dumps(report))
        log.info("Evaluation report saved to %s", path)
