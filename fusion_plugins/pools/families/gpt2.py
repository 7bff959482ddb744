"""FusionBench's GPT-2 pool: bare trunks are merged, heads come from the classifiers."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from fusion_bench.modelpool import GPT2ForSequenceClassificationPool
from torch import Tensor, nn

from ...common.upstream import models_of
from ...merged.heads import ClassificationHead
from ..family import family
from ..model_files import is_from_pretrained
from ..task_heads import load_own_head
from ..text import TextAdapter
from .sequence_classification import require_classes

_CLASSIFIER = "transformers.GPT2ForSequenceClassification.from_pretrained"


@family(
    "fusion_bench.modelpool.huggingface_gpt2_classification.GPT2ForSequenceClassificationPool"
)
class GPT2Adapter(TextAdapter):
    """For :class:`fusion_bench.modelpool.GPT2ForSequenceClassificationPool`.

    Its models are ``GPT2Model``; `pool.load_classifier(task)` gives the expert with its
    head.
    """

    loaded_by = GPT2ForSequenceClassificationPool

    @classmethod
    def head_site(cls, module: nn.Module) -> str | None:
        """The classifiers have one; the trunks that are merged do not."""
        return "score" if hasattr(module, "score") else None

    def heads(self) -> dict[str, nn.Module]:
        """The classifiers' score layers; one classifier at a time is loaded."""
        heads: dict[str, nn.Module] = {}
        classifiers = copy(self.modelpool)
        # Not as a view of a pool, which may hand out the trunks that it holds.
        classifiers.__class__ = GPT2ForSequenceClassificationPool
        configs = models_of(self.modelpool)
        with_heads = {
            name: {**config, "_target_": _CLASSIFIER}
            for name, config in configs.items()
            if is_from_pretrained(config)
        }
        models_of.put(classifiers, with_heads)
        for task in self.tasks:
            if not is_from_pretrained(configs[task]):
                raise ValueError(
                    f"expert '{task}' is not loaded by from_pretrained, so the pool cannot"
                    " load its classifier. Give the folder or hub name of the expert's"
                    " GPT2ForSequenceClassification."
                )
            score: Any = load_own_head(classifiers, task, "score")
            require_classes(task, score.out_features)
            heads[task] = ClassificationHead(score.weight, score.bias).to(self.device)
        return heads

    def features(self, module: nn.Module, inputs: Tensor) -> Tensor:
        """The hidden state of each sample's last token, shape (samples, width).

        A classifier looks for the last token that is not padding; this one for the last
        that is attended to.
        """
        texts = self._encoder.unpack(inputs)
        hidden = module(**texts).last_hidden_state
        mask = texts["attention_mask"]
        places = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * places).argmax(-1)
        return hidden[torch.arange(len(hidden), device=mask.device), last]
