"""FusionBench's GPT-2 task pool for tinted models."""

from __future__ import annotations

from copy import deepcopy
from functools import cached_property, partial
from typing import Any

from fusion_bench.taskpool import GPT2TextClassificationTaskPool
from torch import nn
from transformers import GPT2ForSequenceClassification

from ..common.upstream import modelpool_of, test_datasets_of
from ..merged.model import TintedModel
from ..modelpool.folders import accounted
from ..pools.family import label_of
from ..pools.labels import check_labels, class_number, part
from ..pools.samples import Samples, opened

_LABELS = ("labels", "label")  # what upstream reads


class GPT2TaskPool(GPT2TextClassificationTaskPool):
    """Evaluates plain trunks as upstream does, and tinted ones with their own layers.

    Heads of plain trunks come from the running program's model pool, as upstream.
    """

    @cached_property
    def _checked(self) -> set[str]:
        return set()

    def check_samples(self) -> None:
        """Raise a ValueError for an expert without a head, or labels it does not know."""
        for task, listed in test_datasets_of(self).items():
            if task in self._checked:  # to open data and load an expert takes its time
                continue
            with accounted(label_of(task), lambda classifier: "score"):
                classes = modelpool_of(self).load_classifier(task).num_labels
            number, raw = partial(class_number, classes=classes), opened(listed)
            labels = partial(part, columns=_LABELS, place=1)
            Samples(task, raw, labels).check()
            check_labels(task, raw, _LABELS, number)
            self._checked.add(task)

    def evaluate(self, model: nn.Module, name: str | None = None) -> dict[str, Any]:
        """As upstream's; test sets are checked first."""
        self.check_samples()
        return super().evaluate(model, name)

    def get_classifier(
        self, task_name: str, model: nn.Module
    ) -> GPT2ForSequenceClassification:
        """The task's classifier around a copy of the model, without dropout.

        Raises:
            ValueError: The model is tinted, but not for this task.
        """
        if not isinstance(model, TintedModel):
            return super().get_classifier(task_name, model).eval()
        with model.for_task(task_name):
            classifier = super().get_classifier(task_name, model.trunk)
        head = model.head(task_name)
        if head is not None:
            classifier.score = deepcopy(head)
        return classifier.eval()
