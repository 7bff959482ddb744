"""The cells of a comparison: one method with one seed each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, ListConfig, OmegaConf

from ..common.options import require_integer
from .methods import Method, short_hash


@dataclass(frozen=True)
class Cell:
    """One method, one seed. Its id is the name of its file in the results folder."""

    method: Method
    seed: int

    @property
    def id(self) -> str:
        return f"{self.method.slug}-seed{self.seed}"


def read_seeds(seeds: object) -> list[int]:
    """The list of seeds.

    Raises:
        ValueError: Not a list of whole numbers >= 0, empty, or with repetitions.
    """
    plain = list(seeds) if isinstance(seeds, (list, tuple, ListConfig)) else seeds
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
    """Every method with every seed; the references, which have none, once as seed 0."""
    return [
        Cell(method, seed)
        for method in methods
        for seed in ((0,) if method.is_reference else seeds)
    ]


def resolve_method(
    method: Method, surroundings: Mapping, seed: int | None
) -> DictConfig:
    """The method's config with its interpolations filled in.

    Args:
        method: Whose config may refer to the job around it, as in ``${path.output_dir}``.
        surroundings: Top-level keys of that job.
        seed: What ``${seed}`` is.
    """
    job = OmegaConf.create({**surroundings, "seed": seed, "method": method.config})
    return OmegaConf.create(OmegaConf.to_container(job.method, resolve=True))


def method_identity(method: Method, surroundings: Mapping) -> str:
    """A hash of everything that decides what the method does, the seed aside."""
    path = {key: f"<{key}>" for key in surroundings.get("path") or {}}
    config = resolve_method(method, {**surroundings, "path": path}, None)
    return short_hash(OmegaConf.to_container(config))


def pools_identity(modelpool: object, taskpool: object) -> str:
    """A hash of the resolved configs of both pools."""
    return short_hash([modelpool, taskpool])


def plain_config(config: object, log_dir: str | None = None) -> object:
    """A resolved config as plain values, without the run folder that changes each time."""
    if isinstance(config, (DictConfig, ListConfig)):
        config = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    text = json.dumps(config, default=str)
    if log_dir:
        text = text.replace(json.dumps(str(log_dir))[1:-1], "<log_dir>")
    return json.loads(text)
