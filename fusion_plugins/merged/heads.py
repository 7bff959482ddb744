"""The linear head of a task."""

from __future__ import annotations

from torch import Tensor, nn


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
