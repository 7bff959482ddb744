"""FusionBench's sequence-to-sequence pool: Flan-T5 and its like."""

from __future__ import annotations

from typing import Any

from fusion_bench.modelpool import Seq2SeqLMPool
from torch import Tensor, nn

from ..family import family
from ..text import TextAdapter


@family("fusion_bench.modelpool.seq2seq_lm.modelpool.Seq2SeqLMPool")
class Seq2SeqAdapter(TextAdapter):
    """For :class:`fusion_bench.modelpool.Seq2SeqLMPool`.

    The classes are the vocabulary: logits are those of the answer's first token, after
    one decoder input of token 1, as in FusionBench's FlanT5LayerWiseAdaMergingAlgorithm.
    Deviation: that one averages the logits of a batch and takes the entropy of the mean,
    which is low only if all samples have the same answer; here it is the mean of the
    samples' entropies, as the paper has it for images (arXiv:2310.02575).
    """

    heads_are_layers = False

    loaded_by = Seq2SeqLMPool

    def check_base(self, base: nn.Module, tokenizer: Any) -> None:
        config = getattr(base, "config", None)
        if not getattr(config, "is_encoder_decoder", False):
            raise ValueError(
                f"The pool is a Seq2SeqLMPool, but its pretrained model is a"
                f" {type(base).__name__} without a decoder. Classifiers belong into a"
                " fusion_bench.modelpool.SequenceClassificationModelPool."
            )

    def heads(self) -> dict[str, nn.Module]:
        return {task: nn.Identity() for task in self.tasks}

    def features(self, module: nn.Module, inputs: Tensor) -> Tensor:
        """Logits of the answer's first token, shape (samples, vocabulary)."""
        texts = self._encoder.unpack(inputs)
        start = texts["input_ids"].new_ones(len(inputs), 1)
        texts = {name: texts[name] for name in ("input_ids", "attention_mask")}
        return module(**texts, decoder_input_ids=start).logits[:, 0]
