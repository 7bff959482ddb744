"""What decides a learned merge's result beside its options."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from torch import Tensor, nn

from ..adaptation import AdaptationTask, MergedWeights
from ..common.identity import fingerprint
from ..pools.adapter import PoolAdapter

_VERSIONS = ("fusion-plugins", "torch", "transformers")


def run_identity(
    weights: MergedWeights, tasks: list[AdaptationTask], adapter: PoolAdapter
) -> dict[str, Any]:
    """Experts, samples, heads and versions, as they stand in checkpoints."""
    contents: dict[str, dict[str, str]] = {}
    for task in tasks:
        for kind, name in task.source.contents().items():
            contents.setdefault(kind, {})[task.name] = name
    outer = [getattr(adapter.outer_module, name) for name in adapter.outer_layers]
    return {
        **contents,
        "tasks_in_order": list(weights.tasks),
        "layers": len(weights.keys),
        "task_vector_norms": [f"{norm:.6g}" for norm in weights.norms()],
        "weights": weights.fingerprint(),
        "samples": {task.name: task.source.count for task in tasks},
        "some_samples": {task.name: task.source.fingerprint() for task in tasks},
        "heads": {task.name: fingerprint(_tensors(task.head)) for task in tasks},
        "outer_layers": fingerprint([_tensors(layer) for layer in outer]),
        "versions": {name: version(name) for name in _VERSIONS},
    }


def _tensors(head: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return dict(head.state_dict()) if isinstance(head, nn.Module) else {}
