"""Rows that run at a setting that `method=select` chooses for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from ..selection.candidates import Grid
from ..selection.line import SCALING
from .composing import compose_method
from .files import flatten
from .loading import ORACLE
from .methods import Method, as_plain

SCORES = ("agreement", "val")


def with_choices(
    methods: Sequence[Method], select: object, oracle: object
) -> list[Method]:
    """The rows, those with one scaling factor at the value that is chosen for them.

    Rows that were given theirs, and those that have none, stay as they are.

    Args:
        methods: The rows.
        select: ``agreement``, ``val``, or None to choose nothing.
        oracle: Whether a row is added for each, chosen by test accuracy.

    Raises:
        ValueError: An argument is something else.
    """
    if select is not None and select not in SCORES:
        raise ValueError(f"select is {select!r}, expected null or one of {SCORES}.")
    if not isinstance(oracle, bool):
        raise ValueError(f"oracle is {oracle!r}, expected true or false.")
    return [row for method in methods for row in _rows(method, select, oracle)]


def _rows(method: Method, select: object, oracle: bool) -> Iterator[Method]:
    free = _has_free_scaling(method)
    yield _chosen(method, select) if free and select else method
    if free and oracle:
        yield _chosen(method, ORACLE)


def _has_free_scaling(method: Method) -> bool:
    given = [name.rpartition(".")[2] for name, _ in flatten(method.overrides)]
    if method.is_reference or SCALING in given:
        return False
    config: Any = OmegaConf.to_container(method.config)
    try:
        Grid.scan(config, method.label)
    except ValueError:
        return False
    return True


def _chosen(method: Method, score: object) -> Method:
    config = compose_method("select")
    OmegaConf.set_struct(config, False)
    config.base, config.score = method.config, score
    if score == ORACLE:
        config.max_samples = None
    overrides: Mapping = {**as_plain(method.overrides), "select": score}
    return Method(method.name, overrides, config)
