"""A head tint under FusionBench's unmodified CLIP task pool."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .feature_map import head_as_feature_map
from .sites import HEAD, Site


class SurgeryHook:
    """What FusionBench's CLIP task pool asks of models with task-specific features."""

    tasks: tuple[str, ...]
    sites: tuple[Site, ...]
    _reference: dict[str, Tensor]
    _maps: dict[str, tuple[Any, Any]]  # task -> (head's version, its feature map)

    def head(self, task: str) -> Any:
        """The tinted head of a task."""
        raise NotImplementedError

    @property
    def is_surgery_model(self) -> bool:
        """FusionBench's CLIP task pool then asks for :meth:`compute_surgery_features`."""
        return True

    def compute_surgery_features(
        self, features: Tensor, dataset_name: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features whose zero-shot logits are the tinted head's.

        Args:
            features: Unit length, shape (samples, features).
            dataset_name: The task.

        Returns:
            New features, the given ones, and their difference.

        Raises:
            ValueError: The tint is elsewhere, or the zero-shot head has not full rank.
        """
        if dataset_name not in self.tasks:
            return features, features, torch.zeros_like(features)
        matrix, offset = self._feature_map(dataset_name)
        changed = features @ matrix.to(features).t() + offset.to(features)
        return changed, features, features - changed

    def _feature_map(self, task: str) -> tuple[Tensor, Tensor]:
        advice = (
            "Evaluate with a task pool that sets the task and uses its layers, such as"
            " CLIPTaskPool."
        )
        head = self.head(task)
        if self.sites != (HEAD,):  # other tints change the features themselves
            raise ValueError(
                f"The tint of '{task}' is not its head alone, but {list(self.sites)}."
                f" {advice}"
            )
        version = head.weight._version, head.bias._version  # new after a load or step
        if self._maps.get(task, (None,))[0] != version:
            weight, bias = head.weight.detach().cpu(), head.bias.detach().cpu()
            try:
                found = head_as_feature_map(weight, bias, self._reference[task].cpu())
            except ValueError as error:
                raise ValueError(f"Task '{task}': {error} {advice}") from error
            self._maps[task] = (version, found)
        return self._maps[task][1]
