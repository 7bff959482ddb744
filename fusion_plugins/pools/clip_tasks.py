"""Zero-shot tasks of CLIP: own ones that FusionBench gets to know, and their heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from fusion_bench.models.hf_clip import HFCLIPClassifier
from fusion_bench.tasks.clip_classification import CLIPTemplateFactory
from torch import Tensor

from ..common import get_logger
from ..common.identity import fingerprint
from ..common.upstream import keep_no_clip_heads, known_clip_tasks
from .tokens import require_words

log = get_logger(__name__)
_HEADS: dict[str, Tensor] = {}


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt with one `{}` as the callable FusionBench expects; equal by its text."""

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or self.text.count("{}") != 1:
            raise ValueError(
                f"template {self.text!r} needs exactly one '{{}}' where the class name goes,"
                " for example 'a photo of a {}.'"
            )

    def __call__(self, class_name: str) -> str:
        return self.text.replace("{}", class_name)


def _texts(task: str, what: str, given: Sequence[str]) -> list[str]:
    if isinstance(given, str):
        raise ValueError(
            f"task {task!r}: {what} are the single string {given!r}; give a list of strings"
        )
    if not given:
        raise ValueError(f"task {task!r}: the list of {what} is empty")
    bad = [text for text in given if not isinstance(text, str) or not text.strip()]
    if bad:
        raise ValueError(f"task {task!r}: {what} must be non-empty text, got {bad}")
    return list(given)


def register_clip_task(
    name: str, classnames: Sequence[str], templates: Sequence[str]
) -> None:
    """Make `name` a zero-shot task that FusionBench's CLIP pools can evaluate.

    Other content under a known name replaces it, also that of a task FusionBench ships.

    Raises:
        ValueError: Empty name, empty class names, or a template without exactly one `{}`.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"a task needs a non-empty name, got {name!r}")
    names = _texts(name, "class names", classnames)
    prompts = [PromptTemplate(t) for t in _texts(name, "templates", templates)]
    repeated = sorted(set(names) - {c for c in names if names.count(c) == 1})
    if repeated:  # as in the usual list of ImageNet's classes
        log.warning(
            f"Task {name!r}: class names repeat: {repeated}. Zero-shot heads cannot tell"
            " classes of one name apart."
        )
    info: dict[str, list[Any]] = {"classnames": names, "templates": prompts}
    known = known_clip_tasks(CLIPTemplateFactory)
    if known.get(name) == info:
        return
    if known.pop(name, None) is not None:  # a name still there makes upstream warn
        log.info(
            f"Task {name!r} is known with other class names or prompts; yours are used."
        )
    # FusionBench 0.2.33 stores templates under a misspelt key unless it is given all
    # three arguments.
    CLIPTemplateFactory.register_dataset(name, dataset_info=info, **info)
    keep_no_clip_heads()


def register_clip_tasks(tasks: Mapping | None, prompts: bool = True) -> None:
    """Register tasks: name -> `classnames` and, if there are `prompts`, `templates`."""
    keys, wanted = {"classnames"}, "classnames (a list) alone: there are no prompts"
    if prompts:
        keys.add("templates")
        wanted = "classnames (a list) and templates (a list of texts with one {})"
    for task, info in (tasks or {}).items():
        if not isinstance(info, Mapping) or set(info) != keys:
            raise ValueError(f"tasks.{task} is {info!r}, expected {wanted}.")
        templates = info["templates"] if prompts else ["a photo of a {}."]
        register_clip_task(task, info["classnames"], templates)


@contextmanager
def registered_tasks(
    tasks: Mapping | None = None, prompts: bool = True
) -> Iterator[None]:
    """Register tasks for a while; all that is registered meanwhile is undone then."""
    known = known_clip_tasks(CLIPTemplateFactory)
    before = dict(known)
    try:
        register_clip_tasks(tasks, prompts)
        yield
    finally:
        known.clear()
        known.update(before)


def require_class_names(
    tasks: Iterable[str], option: str, prompts: bool = True
) -> None:
    """Raise for tasks without class names; `option` is where the user can give them."""
    known = CLIPTemplateFactory.get_available_datasets()
    unknown = [task for task in tasks if task not in known]
    if unknown:
        templates = ", templates: ['a photo of a {}.']" if prompts else ""
        raise ValueError(
            f"FusionBench knows no class names for the task(s) {unknown}. Describe them:"
            f" {option}={{my_task: {{classnames: [...]{templates}}}}}."
        )


class TextHeads:
    """What a text tower makes of class names, in FusionBench's way.

    Heads of equal towers, tokens and places are one in a process: the key is all that they
    are computed from. Tower and tokenizer of the `classifier` must not change.
    """

    def __init__(self, classifier: HFCLIPClassifier):
        self._classifier = classifier
        processor = classifier.processor
        tokenizer = getattr(processor, "tokenizer", processor)
        require_words(tokenizer, getattr(tokenizer, "name_or_path", "of CLIP"))

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
        room = self._classifier.clip_model.config.text_config.max_position_embeddings
        long = next(
            (p for p, t in zip(prompts, tokens, strict=True) if len(t) > room), ""
        )
        if long:
            raise ValueError(
                f"The text '{long[:60]}...' has more than the {room} tokens that CLIP's"
                " text tower takes. Shorten the class name or its template."
            )
        key = fingerprint(self._tower, tokens, len(names))
        if key not in _HEADS:
            HFCLIPClassifier.set_classification_task(self._classifier, names, templates)
            _HEADS[key] = self._classifier.zeroshot_weights
        return _HEADS[key]
