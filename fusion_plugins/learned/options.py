"""The options that all learned merges share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from lightning import Fabric

from ..adaptation import QUANTISED, STORAGE_DTYPES
from ..adaptation.coefficients import GRANULARITIES
from ..awd.options import DisentangleOptions
from ..common.folders import require_path
from ..common.options import (
    choice,
    flag,
    integer,
    number,
    option,
    path,
    patterns,
    require_number,
)
from ..common.upstream import precision_of
from ..pools.family import FinishOptions
from ..pools.tasks import KEEP_ON, DataOptions
from ..selection.pool import SAMPLES

AUTO = "auto"


def _check_disentangle(name: str, value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{name} is {value!r}, expected AWD settings such as {{alpha: 0.1}}."
        )
    try:
        DisentangleOptions.read(name, value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    except TypeError as error:
        raise ValueError(str(error)) from None
    return dict(value)


def _check_init(name: str, value: Any) -> float | str:
    if value != AUTO:
        try:
            require_number(name, value, -10, 10)
        except ValueError as error:
            raise ValueError(f"{str(error)[:-1]}, or '{AUTO}'.") from None
    return value


def _check_seed(name: str, value: Any) -> int:
    known = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and not (known and 0 <= value < 2**63):
        raise ValueError(f"{name} is {value!r}, expected a whole number in [0, 2^63).")
    return value or 0


@dataclass(frozen=True, kw_only=True)
class LearnedOptions(FinishOptions):
    """Options of learned merges: how to finish (`data` is also what is learned from).

    Args:
        granularity: ``layer`` (one coefficient per task and tensor) or ``task``.
        init: Coefficients at step 0; ``auto``: the one value whose merge agrees best with
            the experts on unlabelled samples.
        lr: Of Adam, betas (0.9, 0.999), no weight decay.
        batch_size: Samples per batch, over all processes.
        trim: Share of each task vector kept by TIES trimming ("++"); None for none.
        disentangle: AWD settings (alpha, lr, iterations, granularity, scale_free, ...)
            to disentangle the task vectors first; None for none.
        fraction, max_samples: How much of each dataset takes part.
        keep: Patterns of tensors left as in the base.
        coefficients: File of saved coefficients: merge with them, learn nothing.
        seed: Of the samples' order; None means 0.
        task_vector_dtype: ``float32``, ``bfloat16``, ``float16``, ``int8`` (a scale per
            row) or ``int4`` (a scale per 64 entries).
        offload: Keep task vectors in pinned CPU memory.
        batch_tasks: ``auto``, True or False.
        compile: Use torch.compile.
        cache: Where preprocessed samples are kept: ``cpu``, ``device`` or ``none``.
        num_workers: Preprocessing processes; None for a sensible number.
        checkpoint_dir: Where interrupted runs are kept; None for no checkpoints.
        checkpoint_every, keep_checkpoints: Steps between them, and how many.
        resume: ``auto``, ``never``, or the path of a checkpoint.
        guard_every, guard_samples: Steps between checks against the experts'
            predictions, and samples per task; guard_every=0 turns them off.
        guard_patience: Checks without a gain after which a run ends; 0: it never does.
        stop_on_collapse: Stop at a collapse, and return the state whose predictions
            agree best with the experts'.
        save_model: Write the merged model into the log folder.
        log_every: Steps between log entries.
    """

    granularity: str = choice("layer", GRANULARITIES)
    init: float | str = option(0.3, _check_init)
    lr: float = number(1e-3, high=1e30, open_low=True)
    batch_size: int = integer(16, low=1)
    trim: float | None = number(None, high=1, open_low=True)
    disentangle: dict[str, Any] | None = option(None, _check_disentangle)
    fraction: float = number(1.0, high=1, open_low=True)
    max_samples: int | None = integer(None, low=1)
    keep: tuple[str, ...] = patterns()
    coefficients: str | None = path()
    seed: int = option(None, _check_seed)
    task_vector_dtype: str = choice("float32", STORAGE_DTYPES)
    offload: bool = flag(False)
    batch_tasks: str | bool = choice("auto", ("auto", True, False))
    compile: bool = flag(False)
    cache: str = choice("cpu", KEEP_ON)
    num_workers: int | None = integer(None)
    checkpoint_dir: str | None = path()
    checkpoint_every: int = integer(50, low=1)
    keep_checkpoints: int = integer(2, low=1)
    resume: str = option("auto", require_path)
    guard_every: int = integer(50)
    guard_samples: int = integer(64, low=1)
    guard_patience: int = integer(0)
    stop_on_collapse: bool = flag(True)
    save_model: bool = flag(True)
    log_every: int = integer(1, low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task_vector_dtype not in QUANTISED:
            return
        by_row = (self.disentangle or {}).get("granularity") == "row"
        for name, changes in (("trim", self.trim), ("disentangle", by_row)):
            if changes:
                raise ValueError(
                    f"{name} rewrites single task vectors, which"
                    f" task_vector_dtype={self.task_vector_dtype} keeps in a few bits. Use"
                    " bfloat16 or float32, or leave it out."
                )

    @property
    def from_preset(self) -> dict[str, Any]:
        """The settings that a preset gives, with what was changed of them."""
        return {}

    @property
    def data_options(self) -> DataOptions:
        """Which samples to learn from."""
        monitored = self.guard_samples if self.guard_every else 0
        if self.init == AUTO:
            monitored = max(monitored, SAMPLES)
        return DataOptions(
            self.data,
            self.fraction,
            self.max_samples,
            self.cache,
            self.num_workers,
            monitored,
        )


@dataclass(frozen=True, kw_only=True)
class PresetOptions(LearnedOptions):
    """Options some of which a preset gives where they are None.

    Args:
        preset: Which of :attr:`PRESETS`.
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]]
    preset: str

    def __post_init__(self) -> None:
        (entry,) = (entry for entry in fields(self) if entry.name == "preset")
        entry.metadata["check"]("preset", self.preset)
        for name, value in self.PRESETS[self.preset].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        super().__post_init__()

    @property
    def from_preset(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.PRESETS[self.preset]}

    def describe_preset(self) -> str:
        """Which protocol runs, for the log."""
        given, used = self.PRESETS[self.preset], self.from_preset
        changed = {name: used[name] for name in used if used[name] != given[name]}
        note = f" with {changed}" if changed else ""
        guard = (
            "" if self.stop_on_collapse else " (a collapse is announced, not stopped)"
        )
        return f"preset '{self.preset}'{note}: {used}{guard}"


#: Options that change how a run goes but not what it computes.
INCIDENTAL = {
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


def check_precision(fabric: Fabric) -> str:
    """Fabric's precision, if coefficients can be learned in it.

    Raises:
        ValueError: It keeps the weights in half precision.
    """
    precision = str(precision_of(fabric).precision)
    if precision.endswith("-true") and precision not in ("32-true", "64-true"):
        raise ValueError(
            f"fabric.precision={precision} would keep the merged weights in half"
            " precision, where steps of the coefficients vanish. Use bf16-mixed or"
            " 16-mixed, and method.task_vector_dtype=bfloat16 to save memory."
        )
    return precision
