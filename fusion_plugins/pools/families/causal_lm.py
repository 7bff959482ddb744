"""FusionBench's pools of causal language models: adaptation on unlabelled prompts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fusion_bench.modelpool import CausalLMPool
from torch import Tensor, nn

from ..family import family
from ..loading import load_base
from ..model_files import given_tokenizer, load_tokenizer
from ..text import TextAdapter
from ..tokens import LONGEST


@family("fusion_bench.modelpool.causal_lm.causal_lm.CausalLMPool")
class CausalLMAdapter(TextAdapter):
    """For :class:`fusion_bench.modelpool.CausalLMPool`.

    Samples have a text field (``text``, ``prompt``, or those named in `task_info`) or are
    tokenised already (``input_ids``); then the pool needs no tokenizer. The whole model
    is merged. The classes are the vocabulary: logits are those of the token that would
    follow the last one of the prompt, so that AdaMerging makes the model sure of how each
    answer starts.

    Deviation: FusionBench's LayerWiseAdaMergingForLlamaSFT minimises the cross-entropy of
    labelled samples over all positions and merges the decoder layers alone; the entropy
    needs no labels.
    """

    heads_are_layers = False
    loaded_by = CausalLMPool

    def prepare(self, device: torch.device) -> None:
        self.device = device
        base = load_base(self.modelpool)
        if getattr(base, "get_output_embeddings", lambda: None)() is None:
            raise ValueError(
                f"The pool is a {type(self.modelpool).__name__}, but its pretrained model"
                f" is a {type(base).__name__} without an output layer over the vocabulary."
            )
        named = given_tokenizer(self.modelpool) is not None
        tokenizer = load_tokenizer(self.modelpool) if named else _NoTokenizer()
        self._unmasked = tokenizer.pad_token_id is None
        if self._unmasked:  # any token can fill places that nothing looks at
            tokenizer.pad_token_id = 0
        self._choose_lengths(base, tokenizer)

    def fields(self, task: str | None, sample: Any) -> Sequence[str] | None:
        fields = super().fields(task, sample)
        if fields is None and isinstance(sample, Mapping) and "input_ids" not in sample:
            if "prompt" in sample and "text" not in sample:
                return ["prompt"]
        return fields

    def read(self, task: str | None, sample: Any) -> Tensor:
        if self._unmasked and isinstance(sample, Mapping) and "input_ids" in sample:
            ids = torch.as_tensor(sample["input_ids"]).flatten()
            sample = {"attention_mask": torch.ones_like(ids), **sample}
        return super().read(task, sample)

    def heads(self) -> dict[str, nn.Module]:
        return {task: nn.Identity() for task in self.tasks}

    def features(self, module: nn.Module, inputs: Tensor) -> Tensor:
        """Logits behind each prompt's last token, shape (samples, vocabulary)."""
        texts = self._encoder.unpack(inputs)
        ids, mask = texts["input_ids"], texts["attention_mask"]
        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
        options = {"attention_mask": mask, "use_cache": False}
        if _can_choose_places(module):  # all places would cost vocabulary * length each
            places, last = last.unique(return_inverse=True)
            options["logits_to_keep"] = places
        logits = module(ids, **options).logits
        return logits[torch.arange(len(logits), device=logits.device), last]


def _can_choose_places(module: nn.Module) -> bool:
    compiled_from = getattr(module, "_orig_mod", module)
    return "logits_to_keep" in inspect.signature(compiled_from.forward).parameters


class _NoTokenizer:
    """Stands for the tokenizer of a pool whose samples are tokenised already."""

    pad_token_id = None
    model_input_names = ("input_ids", "attention_mask")
    model_max_length = LONGEST

    def __call__(self, *texts: Any, **options: Any) -> Any:
        raise ValueError(
            "The samples hold text, but the pool has no tokenizer. Set modelpool.tokenizer"
            " to the model's folder or hub name, or give samples with input_ids."
        )
