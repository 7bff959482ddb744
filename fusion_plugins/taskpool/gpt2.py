"""FusionBench's GPT-2 task pool for tinted models."""

from __future__ import annotations

from copy import deepcopy

from fusion_bench.taskpool import GPT2TextClassificationTaskPool
from torch import nn
from transformers import GPT2ForSequenceClassification

from ..merged.model import TintedModel


class GPT2TaskPool(GPT2TextClassificationTaskPool):
    """Evaluates plain trunks as upstream does, and tinted ones with their own layers.

    Heads of plain trunks come from the running program's model pool, as upstream.
    """

    def get_classifier(
        self, task_name: str, model: nn.Module
    ) -> GPT2ForSequenceClassification:
        """The task's classifier around a copy of the model.

        Raises:
            ValueError: The model is tinted, but not for this task.
        """
        if not isinstance(model, TintedModel):
            return super().get_classifier(task_name, model)
        model.set_task(task_name)
        try:
            classifier = super().get_classifier(task_name, model.trunk)
            head = model.head(task_name)
            if head is not None:
                classifier.score = deepcopy(head)
            return classifier
        finally:
            model.set_task(None)
