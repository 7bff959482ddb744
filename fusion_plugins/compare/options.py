"""Options that a user changes in a method's config: nesting, merging, checking."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence

from omegaconf import DictConfig, ListConfig, OmegaConf


def flatten(options: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Nested options as pairs of dotted name and value."""
    for key, value in options.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def as_nested(options: Mapping) -> dict:
    """Options whose names may be dotted, as nested mappings."""
    nested: dict = {}
    for key, value in options.items():
        *path, last = str(key).split(".")
        value = as_nested(value) if isinstance(value, Mapping) else value
        for part in reversed(path):
            last, value = part, {last: value}
        nested = merged_options(nested, {last: value})
    return nested


def merged_options(below: Mapping, above: Mapping) -> dict:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(merged.get(key), Mapping) and isinstance(value, Mapping)
        merged[key] = merged_options(merged[key], value) if both else value
    return merged


def as_plain(value: object) -> object:
    if isinstance(value, (DictConfig, ListConfig)):
        return OmegaConf.to_container(value, resolve=True)
    return list(value) if isinstance(value, tuple) else value


def did_you_mean(name: str, known: Sequence[str], prefix: str = "") -> str:
    """A sentence with the nearest known names; empty when none is near."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    tail = [other for other in known if other.rpartition("/")[2] == name]
    near = list(dict.fromkeys([*tail, *near]))[:3]
    return (
        f" Did you mean {' or '.join(repr(prefix + n) for n in near)}?" if near else ""
    )


def check_options(name: str, node: object, changes: Mapping, path: str = "") -> None:
    for key, value in changes.items():
        if key not in node:
            known = [str(k) for k in node if not str(k).startswith("_")]
            raise ValueError(
                f"{name} has no option '{path}{key}'.{did_you_mean(str(key), known, path)}"
                f" Options: {', '.join(path + k for k in known)}."
            )
        below = OmegaConf.to_container(node)[key]  # not resolved
        if isinstance(value, Mapping) and isinstance(below, dict) and below:
            check_options(name, node[key], value, f"{path}{key}.")
