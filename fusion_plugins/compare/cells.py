"""The cells of a comparison: one method with one seed each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..common.options import require_integer
from .methods import Method, as_plain


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
