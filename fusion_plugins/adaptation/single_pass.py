"""The coefficients' update and the next merge in one pass over the task vectors.

Where each tensor has coefficients of its own, its gradient, its step of Adam and its next
merge need no other tensor's. Done one after the other, the merge finds the task vectors
that the gradient has read still in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .coefficients import Coefficients
from .weights import MergedWeights

if TYPE_CHECKING:
    from .engine import Engine

# Task vectors of a group of tensors. Fewer groups mean fewer small operations; larger ones
# do not stay in the cache.
_GROUP_BYTES = 16 * 2**20

_OTHER_ADAMS = ("amsgrad", "capturable", "differentiable", "foreach", "fused")
_OTHER_ADAMS += ("decoupled_weight_decay", "maximize", "weight_decay")
_MOMENTS = ("exp_avg", "exp_avg_sq")


class SinglePass:
    """One step of Adam on the coefficients, worked out beside what they are now.

    Nothing but the module's weights changes until `commit`.

    Args:
        weights: Their parameters hold gradients, which are dropped.
        coefficients: What is learned; `Coefficients.separate` must hold.
        optimizer: Its Adam, which has taken a step before.

    Attributes:
        gradient: dL/d effective coefficients, shape (tasks, layers).
    """

    def __init__(
        self,
        weights: MergedWeights,
        coefficients: Coefficients,
        optimizer: torch.optim.Adam,
    ):
        self._weights, self._coefficients = weights, coefficients
        self._options = _group_of(coefficients.raw, optimizer)
        self._state = optimizer.state[coefficients.raw]
        raw = coefficients.raw
        applied = coefficients.applied()
        (self._slope,) = torch.autograd.grad(applied.sum(), raw)
        self._raw = raw.detach().clone()
        self._count = self._state["step"].item() + 1
        self._moments = {name: self._state[name].clone() for name in _MOMENTS}
        self.gradient = weights.zero_gradient()
        weights.each(self._update, weights.column_groups(_GROUP_BYTES))

    def _update(self, columns: slice) -> None:
        """Gradient, step and next merge of some tensors."""
        numbers = range(columns.start, columns.stop)
        for column in numbers:
            self._weights.take_gradient(column, self.gradient)
        following = self._step(columns)
        if self._coefficients.clamp:
            following = following.clamp(0, 1)
        for column, weights in zip(numbers, following.unbind(1)):
            self._weights.merge_layer(column, weights)

    def _step(self, columns: slice) -> Tensor:
        """Adam on some columns, whose new values it gives.

        As torch.optim.Adam does it, whose own function takes several times as long for so
        few numbers: step = lr / (1 - b1^n) * m / (sqrt(v / (1 - b2^n)) + eps).
        """
        (first, second), count = self._options["betas"], self._count
        mean, square = (self._moments[name][:, columns] for name in _MOMENTS)
        gradient = self.gradient[:, columns].to(mean) * self._slope[:, columns]
        mean.lerp_(gradient, 1 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = square.sqrt().div_((1 - second**count) ** 0.5).add_(self._options["eps"])
        size = self._options["lr"] / (1 - first**count)
        return self._raw[:, columns].addcdiv_(mean, root, value=-size)

    @torch.no_grad()
    def commit(self) -> None:
        """Make the step the coefficients' and the optimiser's own."""
        self._coefficients.raw.copy_(self._raw)
        for name, moment in self._moments.items():
            self._state[name].copy_(moment)
        self._state["step"] += 1
        self._weights.note_merged(self._coefficients.effective().detach())


def fits(engine: Engine) -> bool:
    """Whether one pass does what the ordinary two do.

    It wants: a CPU and one process; a coefficient per tensor, not mixed with others; plain
    Adam that has taken its first step, with nothing watching it or the gradient.
    """
    raw, optimizer = engine.coefficients.raw, engine.optimizer
    if type(optimizer) is not torch.optim.Adam or not engine.coefficients.separate:
        return False
    alone = engine.weights.device.type == "cpu" and engine.fabric.world_size == 1
    options = _group_of(raw, optimizer)
    return (
        alone
        and not engine.scales_gradients
        and raw.requires_grad
        and raw.grad is None
        and not raw._backward_hooks
        and not optimizer._optimizer_step_pre_hooks
        and not optimizer._optimizer_step_post_hooks
        and options is not None
        and isinstance(options["lr"], float)
        and not any(options.get(name) for name in _OTHER_ADAMS)
        and bool(optimizer.state.get(raw))
    )


def _group_of(parameter: Tensor, optimizer: torch.optim.Optimizer) -> Mapping | None:
    for group in optimizer.param_groups:
        if any(p is parameter for p in group["params"]):
            return group
    return None
