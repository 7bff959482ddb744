"""From options and lists of values to candidates: names resolved, configs made."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from typing import Any

from .line import SCALING, chooser, on_a_line


@dataclass(frozen=True)
class Option:
    """An option that differs between candidates.

    Attributes:
        name: As the user calls it.
        path: Its place in the method's config.
        on_a_line: Whether it moves the merge along a line.
    """

    name: str
    path: tuple[str, ...]
    on_a_line: bool


@dataclass(frozen=True)
class Grid:
    """All combinations of the options' values.

    Attributes:
        config: The method.
        options: Those that differ. One that moves merges along a line is the last.
        values: Of each option; none if they are to be scanned.
    """

    config: Mapping[str, Any]
    options: tuple[Option, ...]
    values: tuple[list[Any], ...]

    @classmethod
    def scan(cls, config: Mapping[str, Any], owner: str) -> Grid:
        """The method's one scaling factor, to be scanned.

        Args:
            config: The method.
            owner: What asks for it, for the message.

        Raises:
            ValueError: The method has none, or several.
        """
        return cls(config, (_option(SCALING, config, owner),), ())

    @classmethod
    def read(cls, config: Mapping[str, Any], over: Mapping[str, Any]) -> Grid:
        """The grid of `over`, as the user gives it.

        Raises:
            ValueError: A name is unknown, ambiguous or given twice, or a list is empty.
        """
        if not over:
            raise ValueError(f"over lists no option, {_expected(config)}.")
        for name, values in over.items():
            if not isinstance(values, list) or not values:
                raise ValueError(
                    f"over.{name} is {values!r}, expected a list of values to try."
                )
        options = [_option(str(name), config, "over") for name in over]
        paths = [option.path for option in options]
        twice = next((o.name for o in options if paths.count(o.path) > 1), None)
        if twice is not None:
            raise ValueError(f"over: '{twice}' stands there twice; list it once.")
        pairs = zip(options, over.values(), strict=True)
        ordered = sorted(pairs, key=lambda pair: pair[0].on_a_line)
        return cls(config, *map(tuple, zip(*ordered, strict=True)))

    @property
    def scaling(self) -> Option | None:
        """The option that moves merges along a line, if more than one value asks so."""
        last = self.options[-1]
        several = not self.values or len(self.values[-1]) > 1
        return last if last.on_a_line and several else None

    def settings(self) -> Iterator[dict[str, Any]]:
        """Option -> value of each candidate."""
        names = [option.name for option in self.options]
        for values in product(*self.values) if self.values else ():
            yield dict(zip(names, values, strict=True))

    def method(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The method's config with these settings."""
        config: dict[str, Any] = deepcopy(dict(self.config))
        for option in self.options:
            node = config
            for part in option.path[:-1]:
                node = node[part]
            node[option.path[-1]] = deepcopy(settings[option.name])
        return config


def _option(name: str, config: Mapping[str, Any], owner: str) -> Option:
    paths = list(_paths(config))
    found = [path for path in paths if ".".join(path) == name]
    found = found or [path for path in paths if path[-1] == name]
    if len(found) == 1:
        if itself := chooser(config, found[0]):
            raise ValueError(
                f"{owner}: '{name}' changes nothing, {itself} chooses it itself. Leave it"
                " out, or set that method's scaling (or over) to what you want."
            )
        return Option(name, found[0], on_a_line(config, found[0]))
    if found:
        several = " or ".join(f"'{'.'.join(path)}'" for path in found)
        raise ValueError(f"{owner}: '{name}' may be {several}. Write the whole name.")
    known = {".".join(path): path[-1] for path in paths}
    near = difflib.get_close_matches(name, [*known, *known.values()], n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise ValueError(
        f"{owner}: there is no option '{name}', {_expected(config)}.{hint}"
    )


def _expected(config: Mapping[str, Any]) -> str:
    names = ", ".join(".".join(path) for path in _paths(config))
    if not names:
        return "and the method has no other"
    return f"expected lists for some of {names}"


def _paths(config: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for key, value in config.items():
        if str(key).startswith("_"):
            continue
        yield (str(key),)
        if isinstance(value, Mapping):
            yield from ((str(key), *path) for path in _paths(value))
