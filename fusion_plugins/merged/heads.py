"""The linear head of a task, also as FusionBench's unmodified CLIP task pool takes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .sites import HEAD, Site

_ADVICE = (
    "Evaluate with a task pool that sets the task and uses its layers, such as"
    " CLIPTaskPool."
)


class ClassificationHead(nn.Module):
    """Features -> logits = weight @ f (+ bias), the features normalised by the pool.

    Args:
        weight: Shape (classes, features), any temperature folded in.
        bias: Shape (classes,), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.bias = None
        if bias is not None:
            self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.linear(features, self.weight, self.bias)


def head_as_feature_map(
    head: Tensor, bias: Tensor, reference: Tensor, tolerance: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """A map of features after which the reference head gives the trained head's logits.

    f' = f + R^+ ((W - R) f + b), hence R f' = W f + b if R has full row rank.

    Args:
        head: W, shape (classes, features).
        bias: b, shape (classes,).
        reference: R, shape (classes, features); in the same scale as W.
        tolerance: Largest entry of R R^+ - I that counts as full row rank.

    Returns:
        Matrix (features, features) and offset (features,) of f' = matrix f + offset, in
        the dtype of `head`; worked out in float64.

    Raises:
        ValueError: R has not full row rank, as with more classes than features.
    """
    reference64 = reference.double()
    inverse = torch.linalg.pinv(reference64)
    identity = torch.eye(len(reference), dtype=torch.float64, device=reference.device)
    error = (reference64 @ inverse - identity).abs().max().item()
    if error > tolerance:
        raise ValueError(
            f"a head of {len(reference)} classes on {reference.shape[1]} features has rank"
            f" {torch.linalg.matrix_rank(reference64).item()}, so the trained head cannot"
            " be expressed through the zero-shot one."
        )
    features = torch.eye(reference.shape[1], dtype=torch.float64, device=head.device)
    matrix = features + inverse @ (head.double() - reference64)
    return matrix.to(head), (inverse @ bias.double()).to(head)


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
        head = self.head(task)
        if self.sites != (HEAD,):  # other tints change the features themselves
            raise ValueError(
                f"The tint of '{task}' is not its head alone, but {list(self.sites)}."
                f" {_ADVICE}"
            )
        version = head.weight._version, head.bias._version  # new after a load or step
        if self._maps.get(task, (None,))[0] != version:
            weight, bias = head.weight.detach().cpu(), head.bias.detach().cpu()
            try:
                found = head_as_feature_map(weight, bias, self._reference[task].cpu())
            except ValueError as error:
                raise ValueError(f"Task '{task}': {error} {_ADVICE}") from error
            self._maps[task] = (version, found)
        return self._maps[task][1]
