"""The cells of a comparison: one method with one seed each, at a chosen setting or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from ..common.options import require_integer
from ..selection.candidates import Grid
from ..selection.line import SCALING
from .composing import compose_method
from .files import as_plain, flatten
from .loading import ORACLE
from .methods import Method

SCORES = ("agreement", "val")


@dataclass(frozen=True)
class Cell:
    """One method, one seed. Its id is the name of its file in the results folder."""

    method: Method
    seed: int

    @property
    def id(self) -> str:
        return f"{self.method.slug}-seed{self.seed}"


def read_seeds(seeds: object) -> list[int]:
    """The list of seeds: whole numbers, each once."""
    plain = as_plain(seeds)
    if not isinstance(plain, list) or not plain:
        raise ValueError(
            f"seeds is {plain!r}, expected a list such as seeds='[0,1,2]'."
        )
    for seed in plain:
        require_integer("seeds: an entry", seed)
    if len(set(plain)) < len(plain):
        raise ValueError(f"seeds is {plain}, where some are listed more than once.")
    return plain


def make_cells(methods: Sequence[Method], seeds: Sequence[int]) -> list[Cell]:
    """Every method with every seed; those that no seed changes once, with the first.

    The references, which have none, are seed 0.
    """
    return [
        Cell(method, 0 if method.is_reference else seed)
        for method in methods
        for seed in (seeds if method.uses_seed else seeds[:1])
    ]


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
    rows = []
    for method in methods:
        free = _has_free_scaling(method)
        rows.append(_chosen(method, select) if free and select else method)
        if free and oracle:
            rows.append(_chosen(method, ORACLE))
    return rows


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
