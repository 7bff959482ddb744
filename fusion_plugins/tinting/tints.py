"""The layers that are learned for each task, and putting them in their places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from ..adaptation import AdaptationTask, MergedWeights, Predictor
from ..merged import sites
from ..merged.heads import ClassificationHead
from ..merged.sites import Site
from ..pools.adapter import PoolAdapter


@dataclass(frozen=True)
class Places:
    """Where the tasks of a model are to differ.

    Attributes:
        head: Where a task's head stands: outside the trunk, or the module path of the
            heads that experts have of their own.
        heads_differ: Whether every task has its own head in the result.
        heads_learn: Whether these are learned.
        outer: Layers that the pool applies after the trunk.
        inner: Layers of the trunk.
    """

    head: Site
    heads_differ: bool
    heads_learn: bool
    outer: tuple[Site, ...]
    inner: tuple[Site, ...]


@dataclass(frozen=True)
class Tints:
    """Task-specific layers.

    Attributes:
        places: Where they stand.
        layers: Site -> task -> layer.
        plain: Site in the trunk -> the layer that stood there.
        reference: Task -> the frozen head it started from, for heads outside the trunk.
    """

    places: Places
    module: nn.Module
    outer_module: Callable[[], nn.Module]
    layers: dict[Site, dict[str, nn.Module]] = field(default_factory=dict)
    plain: dict[Site, nn.Module] = field(default_factory=dict)
    reference: dict[str, Tensor] = field(default_factory=dict)

    def with_tints(self, task: AdaptationTask, learn: bool) -> AdaptationTask:
        """The task with its layers, to be learned or not."""
        learned: list[nn.Parameter] = []
        for site, tints in self.layers.items():
            # Heads of the experts' own are here in any case, to be part of the result.
            chosen = site != self.places.head or self.places.heads_learn
            layer = tints[task.name].requires_grad_(learn and chosen)
            learned += [p for p in layer.parameters() if p.requires_grad]
        placed = [site for site in self.layers if site != self.places.head]
        heads = self.layers.get(self.places.head, {})
        return replace(
            task,
            head=heads.get(task.name, task.head),
            parameters=tuple(learned),
            activate=(lambda: self._put(placed, task.name)) if placed else None,
        )

    def _put(self, placed: Sequence[Site], task: str) -> None:
        for site in placed:
            owner = self.outer_module() if site.is_outer else self.module
            sites.replace(owner, site.layer, self.layers[site][task])

    def start_from_merged(self) -> None:
        """Let inner layers start from what the trunk holds in their places."""
        for site in self.places.inner:
            for tint in self.layers[site].values():
                tint.load_state_dict(self.plain[site].state_dict())

    def take_out(self) -> None:
        """Put the plain layers back into the trunk."""
        for site, layer in self.plain.items():
            sites.replace(self.module, site, layer)


def make_tints(
    places: Places, experts: Predictor, adapter: PoolAdapter, init: str
) -> Tints:
    """Copies of the layers at all places, as they are in the experts or the base.

    Args:
        places: Where.
        experts: The weights hold the untouched task vectors.
        adapter: Of the pool.
        init: ``expert``: inner layers start from each task's expert; else from the base.
    """
    module = experts.weights.module
    tints = Tints(places, module, lambda: adapter.outer_module)
    if places.heads_differ:
        _copy_heads(tints, experts.tasks)
    for site in places.outer:
        layer = getattr(adapter.outer_module, site.layer)
        names = (task.name for task in experts.tasks)
        tints.layers[site] = {name: sites.trainable_copy(layer) for name in names}
    if places.inner:
        _copy_inner(tints, experts, init == "expert")
    return tints


def _copy_heads(tints: Tints, tasks: Sequence[AdaptationTask]) -> None:
    place = tints.places.head
    if place.in_trunk:
        tints.plain[place] = tints.module.get_submodule(place)
    heads = tints.layers[place] = {}
    for task in tasks:
        head = task.head
        if place.in_trunk or not isinstance(head, ClassificationHead):
            heads[task.name] = sites.trainable_copy(cast(nn.Module, head))
            continue
        tints.reference[task.name] = head.weight.detach().clone()
        zeros = head.weight.new_zeros(len(head.weight))
        bias = zeros if head.bias is None else head.bias
        heads[task.name] = ClassificationHead(head.weight, bias)


def _copy_inner(tints: Tints, experts: Predictor, from_expert: bool) -> None:
    weights: MergedWeights = experts.weights
    for site in tints.places.inner:
        tints.plain[site] = tints.module.get_submodule(site)
        tints.layers[site] = {}
    for index, task in enumerate(experts.tasks):
        shape = len(weights.tasks), len(weights.keys)
        coefficients = torch.zeros(shape, device=weights.device)
        coefficients[index] = float(from_expert)
        weights.materialise(coefficients)
        for site in tints.places.inner:
            layer = tints.module.get_submodule(site)
            tints.layers[site][task.name] = sites.trainable_copy(layer)
