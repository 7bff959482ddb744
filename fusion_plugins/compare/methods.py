"""From what a user lists under `methods` to method configs, checked before anything runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from ..common.options import settings_hash
from .bundled import DETERMINISTIC, NOT_RUNNING
from .composing import compose_method, method_names
from .differences import NONE
from .files import as_plain, did_you_mean, flatten
from .loading import REFERENCES


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
    def uses_seed(self) -> bool:
        """Whether a seed may change its result."""
        return not self.is_reference and _uses_seed(_unresolved(self.config))

    @property
    def label(self) -> str:
        options = ", ".join(
            f"{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in flatten(self.overrides)
        )
        return f"{self.name} ({options})" if options else self.name

    @property
    def slug(self) -> str:
        """A file name; with a hash where the bare name would not tell rows apart."""
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", self.name)
        if name == self.name and not self.overrides:
            return name
        return f"{name}-{settings_hash([self.name, self.overrides], 8)}"


def read_methods(listed: object, common: object = None) -> list[Method]:
    """The rows that `methods` and `overrides` of the compare config ask for.

    Args:
        listed: Names, or one-entry mappings from a name to options:
            ``[simple_average, {awd: {alpha: 0.2}}]``.
        common: Method name -> options of all its entries; an entry's own win.

    Raises:
        ValueError: Not such a list, an unknown method or option, or a row listed twice.
    """
    plain = as_plain(listed)
    if not isinstance(plain, list) or not plain:
        raise ValueError(
            f"methods is {plain!r}, expected a list of method names such as"
            " methods='[simple_average, wudi/wudi, {awd: {alpha: 0.2}}]'."
        )
    entries = [_name_and_options(entry) for entry in plain]
    shared = _common(common, [name for name, _ in entries])
    known = method_names()  # slow to list
    methods = [_method(n, shared.get(n, {}) | own, known) for n, own in entries]
    labels = [method.label for method in methods]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"methods lists {twice} more than once; list each row once.")
    return methods


def read_baseline(given: object, methods: Sequence[Method]) -> str | None:
    """The row that differences are to, by label or name, also of another job's methods.

    Raises:
        ValueError: No method has the name.
    """
    rows = {text for method in methods for text in (method.label, method.name)}
    if not isinstance(given, str | None):
        raise ValueError(
            f"baseline is {as_plain(given)!r}, expected the name of one row of the table."
        )
    if given is None or given == NONE or given in rows:
        return None if given is None else str(given)
    known = [*REFERENCES, *method_names()]
    name = str(given).partition(" ")[0]
    if name not in known:
        raise ValueError(
            f"baseline is '{given}', which is no method.{_nearest(name, known)} Give a row"
            f" of the table, or {NONE} for no differences."
        )
    return str(given)


def _nested(options: Mapping) -> dict:
    """Options with dotted names as nested mappings.

    Names that go on where another option is a plain value stay dotted: those of a method
    that is chosen by name, as in ``{base: ties_merging, base.scaling_factor: 0.5}``.
    """
    nested: dict = {}
    for name, value in options.items():
        *above, last = name.split(".")
        parents = {".".join(above[:depth]) for depth in range(1, len(above) + 1)}
        place = nested
        if not parents & set(options):
            for part in above:
                place = place.setdefault(part, {})
        place[name if place is nested else last] = value
    return nested


def _name_and_options(entry: object) -> tuple[str, dict]:
    if isinstance(entry, str) and entry:
        return entry, {}
    if isinstance(entry, dict) and len(entry) == 1:
        name, options = next(iter(entry.items()))
        if isinstance(name, str) and (options is None or isinstance(options, dict)):
            return name, dict(flatten(options or {}))
    raise ValueError(
        f"methods holds {entry!r}, expected a method's name, or one name with its options"
        " such as {awd: {alpha: 0.2}}."
    )


def _common(common: object, names: Sequence[str]) -> dict:
    plain = as_plain(common) or {}
    mapping = isinstance(plain, dict)
    if not mapping or not all(isinstance(v, dict) for v in plain.values()):
        raise ValueError(
            f"overrides is {plain!r}, expected a mapping from method names to options such"
            " as overrides.awd.alpha=0.2."
        )
    idle = [name for name in plain if name not in names]
    if idle:
        raise ValueError(f"overrides has {idle}, which methods does not list: {names}.")
    return {name: dict(flatten(options)) for name, options in plain.items()}


def _method(name: str, overrides: dict, known: Sequence[str]) -> Method:
    if name in REFERENCES:
        if overrides:
            raise ValueError(
                f"'{name}' is not a method, it has no options: {overrides}."
            )
        return Method(name)
    if name not in known:
        raise ValueError(
            f"methods holds '{name}', which is no method.{_nearest(name, known)}"
            f" A method is {', '.join(REFERENCES)} or the name of a file below"
            " config/method of fusion-plugins or of FusionBench."
        )
    config, chosen = _with_chosen_methods(name, overrides, known)
    changes = _nested({k: v for k, v in overrides.items() if k not in chosen})
    _check_options(name, config, changes)
    changed: Any = OmegaConf.merge(config, changes)
    missing = [k for k, v in flatten(_unresolved(changed)) if v == MISSING]
    if missing:
        raise ValueError(
            f"{name} needs {', '.join(missing)}: list it as"
            f" {{{name}: {{{missing[0]}: ...}}}} in methods."
        )
    return Method(name, _nested(overrides), changed)


def _with_chosen_methods(
    name: str, overrides: Mapping, known: Sequence[str]
) -> tuple[DictConfig, dict[str, str]]:
    """The method's config with the options that hold a whole method given by name."""
    config, chosen = compose_method(name), {}
    for key, value in sorted(overrides.items(), key=lambda item: item[0].count(".")):
        part = OmegaConf.select(config, key, throw_on_resolution_failure=False)
        whole = isinstance(part, Mapping) and "_target_" in part
        if not isinstance(value, str) or not whole:
            continue
        if value not in known:
            hint = _nearest(value, known)
            raise ValueError(f"{name}: {key} is '{value}', which is no method.{hint}")
        chosen[key] = value
        config = compose_method(name, chosen)
    return config, chosen


def _nearest(name: str, known: Sequence[str]) -> str:
    """Proposes methods that give a result."""
    alone = (n for n in known if not n.startswith("fusion_plugins/"))
    return did_you_mean(name, [n for n in alone if n not in NOT_RUNNING])


def _check_options(name: str, node: Mapping, changes: Mapping, path: str = "") -> None:
    whole = _unresolved(node)
    for key, value in changes.items():
        if key not in whole:
            known = [str(k) for k in whole if not str(k).startswith("_")]
            raise ValueError(
                f"{name} has no option '{path}{key}'.{did_you_mean(str(key), known, path)}"
                f" Options: {', '.join(path + k for k in known)}."
            )
        below = whole[key]
        if isinstance(value, Mapping) and isinstance(below, dict) and below:
            _check_options(name, node[key], value, f"{path}{key}.")


def _uses_seed(config: Mapping) -> bool:
    """Of a method, or of one inside it; FusionBench's do unless it is known better."""
    target = str(config.get("_target_", ""))
    own = target.startswith("fusion_plugins.")
    parts = [v for v in config.values() if isinstance(v, dict) and "_target_" in v]
    uses = "seed" in config if own else target not in DETERMINISTIC
    return uses or any(map(_uses_seed, parts))


def _unresolved(config: Any) -> Any:
    return OmegaConf.to_container(config)
