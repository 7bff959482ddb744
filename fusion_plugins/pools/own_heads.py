"""Families whose models carry a classification head of their own inside."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fusion_bench.tasks.clip_classification import get_num_classes
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from ..merged.sites import replaced
from ..modelpool.folders import source_of
from .adapter import PoolAdapter
from .labels import check_class_order
from .loading import load_base
from .model_files import is_from_pretrained
from .task_heads import load_own_head

_BY_HEAD = (
    "id2label in the config of the expert",
    "Number the data set's labels as the expert does, or correct its config.",
)


class OwnHeadsAdapter(PoolAdapter):
    """Pools such as ``*ForImageClassification`` and ``*ForSequenceClassification``.

    The trunk is merged; every task keeps its expert's head, so that tasks may differ in
    their classes. A head may be any module, not only a linear layer.
    """

    #: Where such heads may be; the first that a model has is taken.
    head_names: tuple[str, ...] = ("classifier",)

    @classmethod
    def head_site(cls, module: nn.Module) -> str:
        names = dict(module.named_modules())
        for name in cls.head_names:
            if name in names:
                return name
        raise ValueError(
            f"The pretrained model is a {type(module).__name__} without a classification"
            f" head: it has none of {list(cls.head_names)}. Load it as the class that the"
            " experts are of; its head may have any number of classes."
        )

    def prepare(self, device: torch.device) -> None:
        self.device = device

    def heads(self) -> dict[str, nn.Module]:
        """Each expert's head; one expert at a time is loaded for it."""
        site = self.head_site(load_base(self.modelpool))
        return {
            task: load_own_head(self.modelpool, task, site).to(self.device)
            for task in self.tasks
        }

    def features(self, module: nn.Module, inputs: Tensor) -> Tensor:
        """What the model hands to its head."""
        with replaced(module, {self.head_site(module): nn.Identity()}):
            return self.outputs(module, inputs)

    @abstractmethod
    def outputs(self, module: nn.Module, inputs: Tensor) -> Tensor:
        """The model's logits; its head may be an identity while this is called."""


def head_config(head_of: Any) -> Any:
    """The config of a task's model, given as such, by folder, hub name or config."""
    if isinstance(head_of, PreTrainedModel):
        return head_of.config
    known = isinstance(head_of, str) or is_from_pretrained(head_of)
    if isinstance(head_of, Mapping) and "dataset_name" not in head_of:
        known = known or "config_path" in head_of
    source = source_of(head_of) if known else None
    try:
        return None if source is None else AutoConfig.from_pretrained(source)
    except (OSError, ValueError):  # an adapter, or a model of another library
        return None


def output_size(head: nn.Module) -> int | None:
    """How many numbers a head gives per sample; None if it ends in no linear layer."""
    linear = [m for m in head.modules() if isinstance(m, nn.Linear)]
    return linear[-1].out_features if linear else None


def check_head_size(task: str, expert: Any, counts: Sequence[int], of: str) -> None:
    """Raise if the head of a task's expert tells another number of classes apart.

    Args:
        task: The task.
        expert: As a pool lists it. Where only loading tells what its head has, it passes.
        counts: How many classes there may be; none passes.
        of: Who says so.
    """
    outputs = _outputs(expert)
    if counts and outputs is not None and outputs not in counts:
        raise ValueError(
            f"Task '{task}' has {counts[0]} classes by {of}, but the head of its expert has"
            f" {outputs} outputs. Give the names or the data set that it was trained with."
        )


def _outputs(expert: Any) -> int | None:
    if isinstance(expert, Mapping) and "model_name" in expert:  # of torchvision
        known = expert.get("dataset_name")
        return get_num_classes(known) if known else expert.get("num_classes")
    if (config := head_config(expert)) is not None:
        return config.num_labels
    head = getattr(expert, "fc", None)  # as torchvision's models in memory
    return output_size(head) if isinstance(head, nn.Module) else None


def check_head_order(task: str, raw: Any, config: Any) -> None:
    """Raise if a data set numbers its classes otherwise than the model with their head.

    Args:
        task: The task.
        raw: Its data set.
        config: Of the model.

    Raises:
        ValueError: Its ``id2label`` gives a class another number.
    """
    named = config.id2label
    check_class_order(task, raw, [named[n] for n in sorted(named)], _BY_HEAD)
