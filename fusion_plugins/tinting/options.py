"""The options of Model Tinting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..common.options import choice, flag, integer, like, number, option
from ..learned.options import LearnedOptions, PresetOptions
from ..merged.sites import HEAD


def _check_tint(name: str, value: Any) -> tuple[str, ...]:
    places = [value] if isinstance(value, str) else value
    named = isinstance(places, Sequence) and all(isinstance(p, str) for p in places)
    if not named or not places or not all(places):
        raise ValueError(
            f"{name} is {value!r}, expected '{HEAD}', a module path or pattern, or a list"
            " of these."
        )
    return tuple(places)


_DEFAULT = {"rounds": 500, "lr": 1e-2, "tint_lr": None, "stop_on_collapse": True}


@dataclass(frozen=True, kw_only=True)
class TintingOptions(PresetOptions):
    """Options of Model Tinting: those of learned merges, and these.

    Args:
        preset: ``default``, ``fast`` (a fifth of the rounds) or ``official`` (the paper):
            gives `rounds`, `lr`, `tint_lr` and `stop_on_collapse` where they are None.
        tint: ``head`` (the classification head), a module path or pattern of layers in
            the model, an outer layer such as ``visual_projection``, or a list of these.
        tint_init: What an inner layer starts from: ``pretrained``, ``expert`` or
            ``merged``. A head starts from the task's frozen head in any case.
        rounds: Every task has one batch per round.
        schedule_kind: ``sequential``: a step after each task, tasks in a fresh order
            each round; ``joint``: one step per round.
        labels: Of the teacher: ``hard``, ``soft``, or ``outputs``: no labels, but the mean
            absolute difference from its outputs; dense tasks need this one.
        sampling: ``none``, ``confidence_gap`` or ``top_p``.
        top_p: Share of each batch kept by ``top_p``.
        clamp: Clamp coefficients to [0, 1] in the forward pass.
        tint_lr: Learning rate of the tints; None: that of the coefficients.
        learn_coefficients, learn_tints: False freezes them, for ablations.
        batch_size: As for learned merges.

    Raises:
        ValueError: Nothing is left to learn, or options do not go together.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "default": _DEFAULT,
        "fast": _DEFAULT | {"rounds": 100, "tint_lr": 1e-1},
        "official": _DEFAULT | {"stop_on_collapse": False},
    }

    preset: str = choice("default", PRESETS)
    tint: tuple[str, ...] = option(HEAD, _check_tint)
    tint_init: str = choice("pretrained", ("pretrained", "expert", "merged"))
    rounds: int = integer(None)
    schedule_kind: str = choice("sequential", ("sequential", "joint"))
    labels: str = choice("hard", ("hard", "soft", "outputs"))
    sampling: str = choice("none", ("none", "confidence_gap", "top_p"))
    top_p: float = number(0.5, high=1, open_low=True)
    clamp: bool = flag(True)
    tint_lr: float | None = number(None, high=1e30, open_low=True)
    learn_coefficients: bool = flag(True)
    learn_tints: bool = flag(True)
    lr: float = like(LearnedOptions, "lr", None)
    stop_on_collapse: bool = flag(None)
    batch_size: int = like(LearnedOptions, "batch_size", 32)

    def __post_init__(self) -> None:
        lr_is_the_presets = self.tint_lr is None
        super().__post_init__()
        if self.preset == "fast" and lr_is_the_presets and self.tint != (HEAD,):
            raise ValueError(
                "preset=fast has a learning rate for heads alone, but tint is"
                f" {list(self.tint)}. Give tint_lr too, such as tint_lr=0.01."
            )
        if not self.learn_coefficients and not self.learn_tints:
            raise ValueError(
                "learn_coefficients and learn_tints are both false: nothing is learned."
            )
        if self.labels == "outputs" and self.sampling != "none":
            raise ValueError(
                f"sampling={self.sampling} compares predicted classes; with labels=outputs"
                " use sampling=none."
            )
        if self.coefficients is not None:
            raise ValueError(
                "coefficients cannot restore a tinted model, whose tints were learned too:"
                " use TintedModel.from_pretrained(folder)."
            )
