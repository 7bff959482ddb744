"""From what a user lists under `methods` to method configs, checked before anything runs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from omegaconf import DictConfig, OmegaConf

from .composing import compose_method, method_names
from .names import REFERENCES
from .options import (
    as_nested,
    as_plain,
    check_options,
    did_you_mean,
    flatten,
    merged_options,
    shown,
)


@dataclass(frozen=True)
class Method:
    """One row of the comparison: a method config with what the user changed in it.

    Attributes:
        name: Config name below ``config/method``, or one of `REFERENCES`.
        overrides: Changed options, nested as in the config.
        config: The composed config with the overrides, not resolved; empty for
            `REFERENCES`.
    """

    name: str
    overrides: Mapping = field(default_factory=dict)
    config: DictConfig = field(default_factory=lambda: OmegaConf.create({}))

    @property
    def is_reference(self) -> bool:
        return self.name in REFERENCES

    @property
    def is_own(self) -> bool:
        """Whether it is a method of this package, not of FusionBench."""
        return str(self.config.get("_target_", "")).startswith("fusion_plugins.")

    @property
    def label(self) -> str:
        options = ", ".join(f"{k}={shown(v)}" for k, v in flatten(self.overrides))
        return f"{self.name} ({options})" if options else self.name

    @property
    def slug(self) -> str:
        """A file name; with a hash where the bare name would not tell rows apart."""
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", self.name)
        if name == self.name and not self.overrides:
            return name
        return f"{name}-{short_hash([self.name, self.overrides])}"


def short_hash(content: object) -> str:
    """Eight hexadecimal digits that change with the content."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def read_methods(listed: object, common: object = None) -> list[Method]:
    """The rows that `methods` and `overrides` of the compare config ask for.

    Args:
        listed: Names, or one-entry mappings from a name to options:
            ``[simple_average, {awd: {alpha: 0.2}}]``.
        common: Method name -> options for every entry of that method; an entry's own
            options win.

    Raises:
        ValueError: Not such a list, an unknown method or option (near names are given),
            or a row listed twice.
    """
    entries = [_name_and_options(entry) for entry in _entries(listed)]
    shared = _common(common, [name for name, _ in entries])
    methods = [
        _method(name, merged_options(shared.get(name, {}), options))
        for name, options in entries
    ]
    labels = [method.label for method in methods]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"methods lists {twice} more than once; list each row once.")
    return methods


def _entries(listed: object) -> Sequence:
    plain = as_plain(listed)
    if not isinstance(plain, list) or not plain:
        raise ValueError(
            f"methods is {plain!r}, expected a list of method names such as"
            " methods='[simple_average, wudi/wudi, {awd: {alpha: 0.2}}]'."
        )
    return plain


def _name_and_options(entry: object) -> tuple[str, dict]:
    if isinstance(entry, str) and entry:
        return entry, {}
    if isinstance(entry, dict) and len(entry) == 1:
        name, options = next(iter(entry.items()))
        if isinstance(name, str) and (options is None or isinstance(options, dict)):
            return name, as_nested(options or {})
    raise ValueError(
        f"methods holds {entry!r}, expected a method's name, or one name with its options"
        " such as {awd: {alpha: 0.2}}."
    )


def _common(common: object, names: Sequence[str]) -> dict:
    plain = as_plain(common) or {}
    if not isinstance(plain, dict) or not all(
        isinstance(v, dict) for v in plain.values()
    ):
        raise ValueError(
            f"overrides is {plain!r}, expected a mapping from method names to options such"
            " as overrides.awd.alpha=0.2."
        )
    idle = [name for name in plain if name not in names]
    if idle:
        raise ValueError(f"overrides has {idle}, which methods does not list: {names}.")
    return {name: as_nested(options) for name, options in plain.items()}


def _method(name: str, overrides: dict) -> Method:
    if name in REFERENCES:
        if overrides:
            raise ValueError(
                f"'{name}' is not a method and has no options: {overrides}."
            )
        return Method(name)
    known = method_names()
    if name not in known:
        raise ValueError(
            f"methods holds '{name}', which is no method.{did_you_mean(name, known)}"
            f" A method is {', '.join(REFERENCES)} or the name of a file below"
            " config/method of fusion-plugins or of FusionBench."
        )
    config = compose_method(name)
    chosen = dict(_chosen_methods(name, config, overrides))
    config = compose_method(name, chosen) if chosen else config
    changes = _without(overrides, chosen)
    check_options(name, config, changes)
    return Method(name, overrides, OmegaConf.merge(config, changes))


def _chosen_methods(
    name: str, config: DictConfig, overrides: Mapping
) -> Iterator[tuple[str, str]]:
    """Options that hold a whole method and are given another one by name."""
    for key, value in overrides.items():
        node = config.get(key) if key in config else None
        if not isinstance(value, str) or not isinstance(node, DictConfig):
            continue
        if "_target_" in node:
            known = method_names()
            if value not in known:
                raise ValueError(
                    f"{name}: {key} is '{value}', which is no method."
                    f"{did_you_mean(value, known)}"
                )
            yield key, value


def _without(overrides: Mapping, names: Mapping) -> dict:
    return {key: value for key, value in overrides.items() if key not in names}
