"""Merging coefficients to be learned: task-wise or layer-wise, clamped, mixed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

GRANULARITIES = ("layer", "task")


class Coefficients(nn.Module):
    """From the learned parameter to the coefficients of the task vectors.

    raw -> spread over layers (task-wise) -> clamp to [0, 1] -> mix tasks -> effective.
    All of it is differentiable and tiny, so the chain rule is autograd's.

    Args:
        tasks, layers: How many of each.
        granularity: ``layer``: raw is (tasks, layers); ``task``: raw is (tasks,).
        init: Value of every raw coefficient at step 0.
        clamp: Clamp to [0, 1] in the forward pass. As in the authors' script the raw
            value may drift outside, where its gradient is zero.
        mixing: Optional linear map, shape (tasks, tasks) or (layers, tasks, tasks):
            effective[k, l] = sum_t mixing[l, k, t] * clamped[t, l].
        dtype: Of the raw parameter.

    Source: arXiv:2310.02575, task-wise and layer-wise AdaMerging.
    """

    mixing: Tensor | None

    def __init__(
        self,
        tasks: int,
        layers: int,
        granularity: str = "layer",
        init: float = 0.3,
        clamp: bool = True,
        mixing: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        if granularity not in GRANULARITIES:
            raise ValueError(
                f"granularity is {granularity!r}, expected one of {GRANULARITIES}."
            )
        self.tasks, self.layers, self.clamp = tasks, layers, clamp
        shape = (tasks, layers) if granularity == "layer" else (tasks,)
        self.raw = nn.Parameter(torch.full(shape, float(init), dtype=dtype))
        self.register_buffer("mixing", mixing, persistent=False)

    def load(self, raw: Tensor) -> None:
        """Start from saved raw coefficients.

        Raises:
            ValueError: They have another shape.
        """
        if raw.shape != self.raw.shape:
            raise ValueError(
                f"The saved coefficients have shape {tuple(raw.shape)}, this run learns"
                f" {tuple(self.raw.shape)} (tasks{', layers' * (self.raw.dim() == 2)})."
                " They fit only the pool and granularity they were learned with."
            )
        with torch.no_grad():
            self.raw.copy_(raw)

    def applied(self) -> Tensor:
        """Clamped coefficients, shape (tasks, layers): what the method reports."""
        raw = self.raw[:, None] if self.raw.dim() == 1 else self.raw
        values = _clamp(raw) if self.clamp else raw
        return values.expand(self.tasks, self.layers)

    def effective(self) -> Tensor:
        """Coefficients of the stored task vectors, shape (tasks, layers)."""
        applied = self.applied()
        if self.mixing is None:
            return applied
        mixing = self.mixing.to(applied)
        if mixing.dim() == 2:
            return mixing @ applied
        return torch.einsum("lkt,tl->kl", mixing, applied)


def _clamp(raw: Tensor) -> Tensor:
    """Clamp to [0, 1] whose gradient is 1 on the boundary, whatever torch.clamp's is.

    It was 1 in the torch of the authors' script and is 0 in recent releases, where
    coefficients that start at 0 or 1 would never move.
    """
    inside = (raw >= 0) & (raw <= 1)
    return torch.where(inside, raw, raw.detach().clamp(0, 1))
