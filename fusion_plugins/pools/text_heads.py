"""Zero-shot heads of CLIP, computed once however often and by whom they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from fusion_bench.models.hf_clip import HFCLIPClassifier
from torch import Tensor

from ..common.identity import fingerprint

_HEADS: dict[str, Tensor] = {}


class TextHeads:
    """What a text tower makes of class names, in FusionBench's way.

    Heads of equal towers, tokens and places are one in a process: the key is all that
    they are computed from.

    Args:
        classifier: Holds the tower and the tokenizer; they do not change.
    """

    def __init__(self, classifier: HFCLIPClassifier):
        self._classifier = classifier

    @cached_property
    def _tower(self) -> str:
        clip = self._classifier.clip_model
        parts = (clip.text_model, clip.text_projection)
        device = next(clip.text_projection.parameters()).device.type
        config = clip.config.text_config.to_json_string()
        return fingerprint(device, config, [dict(part.state_dict()) for part in parts])

    @torch.no_grad()
    def __call__(
        self, names: Sequence[str], templates: Sequence[Callable[[str], str]]
    ) -> Tensor:
        """Unit vectors, shape (classes, features)."""
        prompts = [template(name) for name in names for template in templates]
        tokens = self._classifier.processor(text=prompts)["input_ids"]
        key = fingerprint(self._tower, tokens, len(names))
        if key not in _HEADS:
            HFCLIPClassifier.set_classification_task(self._classifier, names, templates)
            _HEADS[key] = self._classifier.zeroshot_weights
        return _HEADS[key]
