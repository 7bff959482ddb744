"""Published numbers, which stand beside measured ones of the same models and tasks only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from .composing import compose_pool

LEFT_OUT = {"left_out": "other pool"}


def comparable(
    published: Mapping[str, Any] | None, modelpool: object, taskpool: object
) -> Mapping[str, Any] | None:
    """The published numbers, or why they are left out.

    Args:
        published: Of a recipe; its ``pools`` name the configs that the numbers are for.
        modelpool: The config of this comparison.
        taskpool: Likewise.
    """
    if not published or "pools" not in published:
        return published
    given = {"modelpool": modelpool, "taskpool": taskpool}
    meant = {g: compose_pool(g, name) for g, name in published["pools"].items()}
    same = all(_identity(meant[group]) == _identity(given[group]) for group in meant)
    return published if same else LEFT_OUT


def _identity(pool: Any) -> object:
    """A model pool's models by their names at the hub, a task pool's tasks."""
    config = pool if isinstance(pool, DictConfig) else OmegaConf.create(pool or {})
    models = config.get("models")
    if models is not None:
        return OmegaConf.to_container(models, resolve=True)
    return sorted(map(str, config.get("test_datasets") or ()))
