"""Pools of ``*ForSequenceClassification`` models: BERT, RoBERTa and their like."""

from __future__ import annotations

from typing import Any

from fusion_bench.modelpool import SequenceClassificationModelPool
from torch import Tensor, nn

from ..family import family
from ..own_heads import OwnHeadsAdapter, output_size
from ..text import TextAdapter


@family(
    "fusion_bench.modelpool.seq_classification_lm.seq_classification_lm.SequenceClassificationModelPool"
)
class SequenceClassificationAdapter(TextAdapter, OwnHeadsAdapter):
    """For :class:`fusion_bench.modelpool.SequenceClassificationModelPool`.

    The trunk is merged, each task keeps its expert's head. Adaptation needs heads with
    two or more classes.
    """

    head_names = ("classifier", "score", "classification_head", "logits_proj")

    loaded_by = SequenceClassificationModelPool

    def check_base(self, base: nn.Module, tokenizer: Any) -> None:
        """Decoders look for the last token that is not padding, by the model's config."""
        if self.head_site(base) != "score":
            return
        config: Any = base.config
        theirs, ours = config.pad_token_id, tokenizer.pad_token_id
        if theirs != ours:
            raise ValueError(
                f"The pretrained model's config has pad_token_id {theirs}, but the"
                f" tokenizer pads with {ours}: the model would take its class from a"
                " padding token. Set both to the same token."
            )

    def heads(self) -> dict[str, nn.Module]:
        """Each expert's own head; a regression's is refused."""
        heads = super().heads()
        for task, head in heads.items():
            require_classes(task, output_size(head))
        return heads

    def outputs(self, module: nn.Module, inputs: Tensor) -> Tensor:
        return module(**self._encoder.unpack(inputs)).logits


def require_classes(task: str, outputs: int | None) -> None:
    """Raise ValueError for a head with a single output."""
    if outputs == 1:
        raise ValueError(
            f"Task '{task}' is a regression: its head has one output, but the entropy of"
            " AdaMerging and the pseudo labels of Tinting need classes. Leave the task out"
            " of the pool, or merge with a data-free method such as method=awd."
        )
