"""Checks of user options that every algorithm class shares."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence

# Keys FusionBench itself puts into a saved config.
_METADATA = {"_usage_", "_version_", "_recursive_"}


def reject_unknown_options(owner: object, options: Mapping[str, object]) -> None:
    """Raise for options no one reads; FusionBench itself only logs a warning.

    Raises:
        TypeError: An option is unknown; the message offers the nearest known one.
    """
    unknown = [name for name in options if name not in _METADATA]
    if not unknown:
        return
    # What auto_register_config collected from the __init__ of the class and its bases.
    known = [name for name in owner._config_mapping.values() if name not in _METADATA]
    near = difflib.get_close_matches(unknown[0], known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise TypeError(
        f"{type(owner).__name__} has no option '{unknown[0]}'.{hint} Known options:"
        f" {', '.join(known)}."
    )


def require_number(
    name: str,
    value: object,
    low: float = 0.0,
    high: float = float("inf"),
    *,
    open_low: bool = False,
) -> None:
    """Raise unless `value` is a finite number in [low, high] (or (low, high])."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    number = number and math.isfinite(value)
    if number and low <= value <= high and not (open_low and value == low):
        return
    left, right = "(" if open_low else "[", ")" if math.isinf(high) else "]"
    raise ValueError(
        f"{name} is {value!r}, expected a number in {left}{low:g}, {high:g}{right}."
    )


def require_integer(name: str, value: object, low: int = 0) -> None:
    """Raise unless `value` is a whole number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} is {value!r}, expected a whole number >= {low}.")


def require_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {list(choices)}.")


def require_patterns(name: str, value: object) -> tuple[str, ...]:
    """A list of shell-style patterns as a tuple.

    Raises:
        ValueError: `value` is a single string or holds something else than strings.
    """
    if value is None:
        return ()
    listed = isinstance(value, Iterable) and not isinstance(value, str)
    if not listed or not all(isinstance(v, str) for v in value):
        raise ValueError(
            f"{name} is {value!r}, expected a list of patterns such as"
            " ['*embeddings*', '*.bias']."
        )
    return tuple(value)
