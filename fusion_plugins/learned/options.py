"""Checks and small derivations of the options of a learned merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from omegaconf import DictConfig, OmegaConf

from ..adaptation import STORAGE_DTYPES, Engine
from ..adaptation.coefficients import GRANULARITIES
from ..awd.disentangle import Disentanglement, disentangle
from ..awd.functional import Descent
from ..common.options import (
    require_choice,
    require_integer,
    require_number,
    require_patterns,
)
from ..merged.statistics import CHOICES as BATCH_NORM
from ..pools.adapter import SPLITS
from ..pools.tasks import KEEP_ON
from ..task_vectors import TaskVectors

_DESCENT = set(Descent.__dataclass_fields__) - {
    "orthogonality_weight",
    "shared_cosine",
}
_DISENTANGLE = _DESCENT | {"granularity", "include", "exclude", "scale_free"}

# Options that change how a run goes but not what it computes.
_INCIDENTAL = {
    "_version_",
    "_usage_",
    "_recursive_",
    "batch_tasks",
    "cache",
    "checkpoint_dir",
    "checkpoint_every",
    "keep_checkpoints",
    "log_every",
    "num_workers",
    "offload",
    "resume",
    "save_model",
}


def plain(value):
    """A config as plain dicts and lists."""
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True)
    return value


def check_options(owner) -> None:
    """Raise ValueError for an option out of its range, before anything is loaded."""
    require_choice("granularity", owner.granularity, GRANULARITIES)
    require_number("init", owner.init, low=-10, high=10)
    require_number("lr", owner.lr, open_low=True)
    require_number("fraction", owner.fraction, high=1, open_low=True)
    if owner.trim is not None:
        require_number("trim", owner.trim, high=1, open_low=True)
    for name in ("batch_size", "checkpoint_every", "keep_checkpoints", "log_every"):
        require_integer(name, getattr(owner, name), low=1)
    require_integer("guard_every", owner.guard_every)
    require_integer("guard_samples", owner.guard_samples, low=1)
    for name in ("max_samples", "num_workers", "seed"):
        if getattr(owner, name) is not None:
            require_integer(name, getattr(owner, name), low=int(name == "max_samples"))
    require_choice("data", owner.data, SPLITS)
    require_choice("batch_norm", owner.batch_norm, BATCH_NORM)
    require_integer("batch_norm_samples", owner.batch_norm_samples, low=2)
    require_choice("cache", owner.cache, KEEP_ON)
    require_choice("task_vector_dtype", owner.task_vector_dtype, tuple(STORAGE_DTYPES))
    for name in ("offload", "compile", "stop_on_collapse", "save_model"):
        require_choice(name, getattr(owner, name), (True, False))
    require_choice("batch_tasks", owner.batch_tasks, ("auto", True, False))
    require_patterns("keep", owner.keep)
    _check_disentangle(owner.disentangle)


def _check_disentangle(options) -> None:
    if options is None:
        return
    if not isinstance(options, (Mapping, DictConfig)):
        raise ValueError(
            f"disentangle is {options!r}, expected AWD settings such as {{alpha: 0.1}}."
        )
    unknown = sorted(set(options) - _DISENTANGLE)
    if unknown:
        raise ValueError(
            f"disentangle has unknown settings {unknown}, known: {sorted(_DISENTANGLE)}."
        )


def disentangled(
    options, task_vectors: TaskVectors, apart: Sequence[str] = ()
) -> Disentanglement | None:
    """Run AWD with the given settings, or None if there are none.

    Args:
        options: Settings.
        task_vectors: Base and experts.
        apart: Tensors that take no part.
    """
    if options is None:
        return None
    options = dict(plain(options))
    descent = {name: options.pop(name) for name in _DESCENT if name in options}
    for name in ("include", "exclude"):
        options[name] = require_patterns(name, options.get(name))
    options["exclude"] += tuple(apart)
    return disentangle(task_vectors, Descent(**descent), **options)


def check_precision(fabric) -> None:
    """Raise ValueError for a Fabric precision in which coefficients cannot be learned."""
    precision = str(fabric._precision.precision)
    if precision.endswith("-true") and precision not in ("32-true", "64-true"):
        raise ValueError(
            f"fabric.precision={precision} would keep the merged weights in half"
            " precision, where steps of the coefficients vanish. Use bf16-mixed or"
            " 16-mixed, and method.task_vector_dtype=bfloat16 to save memory."
        )


def identity(owner, engine: Engine) -> dict:
    """Everything that decides the result of a run, for naming its checkpoints."""
    settings = {k: v for k, v in owner.settings().items() if k not in _INCIDENTAL}
    weights = engine.weights
    return settings | {
        "protocol": getattr(owner, "protocol", None),
        "precision": str(owner.fabric._precision.precision),
        "tasks_in_order": list(weights.tasks),
        "layers": len(weights.keys),
        "task_vector_norms": [f"{norm:.6g}" for norm in weights.norms()],
        "samples": {t.name: len(t.source.dataset) for t in engine.tasks},
    }
