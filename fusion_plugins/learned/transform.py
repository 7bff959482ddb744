"""What is done to task vectors before they are merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..adaptation import MergedWeights
from ..awd.disentangle import Disentanglement
from ..awd.options import DisentangleOptions
from ..task_vectors import TaskVectors
from ..task_vectors.ties import ties_trim_
from .options import LearnedOptions


@dataclass(frozen=True)
class Transform:
    """AWD and TIES trimming, each of which may be absent.

    Attributes:
        disentanglement: What AWD found; None without it.
        trim: Share of entries that trimming keeps; None without it.
        apart: Tensors that take no part.
    """

    disentanglement: Disentanglement | None
    trim: float | None
    apart: Sequence[str]

    @classmethod
    def read(
        cls, options: LearnedOptions, task_vectors: TaskVectors, apart: Sequence[str]
    ) -> Transform:
        """The transform that the options ask for; AWD walks over the checkpoints."""
        found = None
        if options.disentangle is not None:
            settings = DisentangleOptions(**options.disentangle)
            found = settings.find(task_vectors, apart)
        return cls(found, options.trim, apart)

    def mixing(self, keys: Sequence[str]) -> Tensor | None:
        """AWD as a map of coefficients; None if it changes the vectors or is absent."""
        found = self.disentanglement
        return None if found is None or found.by_row else found.mixing(keys)

    def apply_(self, weights: MergedWeights) -> None:
        """Change the stored task vectors, as far as no map of coefficients does it."""
        by_row = self.disentanglement is not None and self.disentanglement.by_row
        if not by_row and self.trim is None:
            return
        layers = list(zip(weights.keys, weights.stacks, strict=True))
        if self.disentanglement is not None and by_row:
            for key, stack in layers:
                self.disentanglement.subtract_(key, stack)
        if self.trim is not None:
            left_out = set(self.apart)
            ties_trim_([s for key, s in layers if key not in left_out], self.trim)
