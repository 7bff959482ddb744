"""Options as frozen dataclasses: each option stands once, with its default and check.

A method lists its options as fields made with :func:`number`, :func:`choice` and their
like. :class:`WithOptions` gives the FusionBench class its constructor, so that Hydra,
Python, saved configs, model cards and checkpoints all read the one list.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import Field, dataclass, field, fields
from enum import Enum
from functools import partial
from typing import Any, ClassVar, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf

from .folders import require_path
from .upstream import saved_options

# Keys FusionBench itself puts into a saved config.
METADATA = {"_usage_", "_version_", "_recursive_"}
_TOO_MANY = 2**32  # of anything that is counted; NumPy takes no larger seed

# (name, value) -> the checked value, or an error that names the option.
Check = Callable[[str, Any], Any]
Own = TypeVar("Own", bound="Options")


def plain(value: Any) -> Any:
    """A config as plain dicts and lists, numbers as Python's; anything else as it is."""
    if isinstance(value, (DictConfig, ListConfig)):
        return OmegaConf.to_container(value, resolve=True)
    numpy = sys.modules.get("numpy")  # which is slow to import
    if numpy is not None and isinstance(value, numpy.generic):
        return value.item()
    return {k: plain(v) for k, v in value.items()} if type(value) is dict else value


@dataclass(frozen=True, kw_only=True)
class Options:
    """Checked settings; subclasses list them as fields.

    Raises:
        ValueError: An option is of the wrong type or out of its range; the message names
            it, its value and what is allowed.
    """

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = plain(getattr(self, entry.name))
            value = entry.metadata["check"](entry.name, value)
            object.__setattr__(self, entry.name, value)

    @classmethod
    def read(cls: type[Own], owner: str, given: Mapping[str, Any]) -> Own:
        """The options that a user gave; FusionBench's own metadata is passed over.

        Raises:
            TypeError: An option is unknown; the message offers the nearest known one.
            ValueError: As for the class.
        """
        known = [entry.name for entry in fields(cls)]
        if not isinstance(given, Mapping):
            names = f"a mapping of {', '.join(known)}"
            raise ValueError(f"{owner} is {given!r}, expected {names}.")
        reject_unknown(owner, given, known)
        return cls(**{str(k): v for k, v in given.items() if k not in METADATA})


class WithOptions:
    """Makes a dataclass of options the constructor of a FusionBench class.

    Subclasses name the dataclass as `Options`, and give this class before FusionBench's.

    Attributes:
        options: The checked options.
    """

    Options: ClassVar[type[Options]]
    options: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        entries = fields(cls.Options)
        own = {entry.name: entry.name for entry in entries}
        saved_options.put(cls, saved_options(cls) | own)
        cls.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    entry.name, inspect.Parameter.KEYWORD_ONLY, default=entry.default
                )
                for entry in entries
            ]
        )

    def __init__(self, **given: Any):
        self.options = self.Options.read(type(self).__name__, given)
        for entry in fields(self.Options):  # as given: what FusionBench saves
            value = given.get(entry.name, entry.default)
            is_config = isinstance(value, (DictConfig, ListConfig))
            setattr(self, entry.name, value if is_config else plain(value))
        super().__init__(**{k: v for k, v in given.items() if k in METADATA})


def option(default: Any, check: Check) -> Any:
    """A field whose value `check` returns, or refuses with the option's name."""
    return field(default=default, metadata={"check": check})


def like(owner: type[Options], name: str, default: Any) -> Any:
    """A field of `owner` with another default."""
    entry: Field = next(entry for entry in fields(owner) if entry.name == name)
    return field(default=default, metadata=entry.metadata)


def number(
    default: float | None,
    low: float = 0.0,
    high: float = math.inf,
    *,
    open_low: bool = False,
) -> Any:
    """A finite number in [low, high], or (low, high]; a default of None allows None."""
    check = partial(require_number, low=low, high=high, open_low=open_low)
    return option(default, _or_none(check) if default is None else check)


def integer(default: int | None, low: int = 0, *, optional: bool = False) -> Any:
    """A whole number of at least `low`; a default of None, or `optional`, allows None."""
    check = partial(require_integer, low=low)
    return option(default, _or_none(check) if optional or default is None else check)


def choice(default: Any, choices: Iterable[Any] | None = None) -> Any:
    """One of some values; those of the default's Enum if none are listed."""
    kind = type(default) if isinstance(default, Enum) else None
    allowed = [m.value for m in kind] if kind else list(choices or ())

    def check(name: str, value: Any) -> Any:
        value = value.value if isinstance(value, Enum) else value
        require_choice(name, value, allowed)
        return kind(value) if kind else value

    return option(default.value if isinstance(default, Enum) else default, check)


def flag(default: bool | None) -> Any:
    """True or false; a default of None allows None."""
    values = (True, False) if default is not None else (None, True, False)
    return choice(default, values)


def patterns() -> Any:
    """Shell-style patterns of tensor names, as a tuple; none by default."""
    return option(None, require_patterns)


def mapping(example: str) -> Any:
    """A mapping, or None (the default); `example` shows one in the message."""

    def check(name: str, value: Any) -> dict | None:
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"{name} is {value!r}, expected a mapping: {example}.")
        return None if value is None else dict(value)

    return option(None, check)


def path(default: str | None = None) -> Any:
    """A path, or None."""
    return option(default, _or_none(require_path))


def _or_none(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


def reject_unknown(owner: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raise TypeError for an option no one reads, offering the nearest known one."""
    unknown = [str(name) for name in given if name not in {*known, *METADATA}]
    if not unknown:
        return
    near = difflib.get_close_matches(unknown[0], known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise TypeError(
        f"{owner} has no option '{unknown[0]}'.{hint} Known options: {', '.join(known)}."
    )


def require_number(
    name: str,
    value: object,
    low: float = 0.0,
    high: float = math.inf,
    *,
    open_low: bool = False,
) -> float:
    """Raise unless `value` is a finite number in [low, high] (or (low, high])."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        inside = abs(value) <= sys.float_info.max and low <= value <= high
        if inside and not (open_low and value == low):
            return value
    left, right = "(" if open_low else "[", ")" if math.isinf(high) else "]"
    raise ValueError(
        f"{name} is {value!r}, expected a number in {left}{low:g}, {high:g}{right}."
    )


def require_integer(name: str, value: object, low: int = 0) -> int:
    """Raise unless `value` is a whole number of at least `low`, below 2^32."""
    below = ""
    if isinstance(value, int) and not isinstance(value, bool):
        if low <= value < _TOO_MANY:
            return value
        below = " and < 2^32" if value >= low else ""
    raise ValueError(f"{name} is {value!r}, expected a whole number >= {low}{below}.")


def require_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise unless `value` is one of `choices`; 1 and 1.0 are not True."""
    if not any(value == known and type(value) is type(known) for known in choices):
        raise ValueError(f"{name} is {value!r}, expected one of {list(choices)}.")


def require_patterns(name: str, value: object) -> tuple[str, ...]:
    """A list of shell-style patterns as a tuple, or ValueError."""
    if value is None:
        return ()
    if isinstance(value, (Sequence, Set)) and not isinstance(value, (str, bytes)):
        found = tuple(value)
        if all(isinstance(v, str) and v for v in found):
            return found
    raise ValueError(
        f"{name} is {value!r}, expected a list of patterns such as"
        " ['*embeddings*', '*.bias']."
    )


def settings_hash(settings: object, digits: int = 64) -> str:
    """A short name for plain values; what is no plain value counts by its text."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
