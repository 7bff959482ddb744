"""What a comparison will run: its cells, and how finished ones are found again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from rich.text import Text

from ..common.options import require_integer
from .files import FORMAT
from .methods import Method, as_plain, short_hash
from .store import Results


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


def plain_config(config: object, log_dir: str | None = None) -> object:
    """A resolved config as plain values, without the run folder that changes each time."""
    if OmegaConf.is_config(config):
        config = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    text = json.dumps(config, default=str)
    if log_dir:
        text = text.replace(json.dumps(str(log_dir))[1:-1], "<log_dir>")
    return json.loads(text)


@dataclass
class Plan:
    """The cells of one command, and the results folder they go to.

    Attributes:
        methods: The rows.
        cells: All cells, finished ones too.
        surroundings: Top-level keys of the job that method configs may refer to.
        results: The results folder; nothing is written to it here.
        description: What ``compare.json`` will hold.
        identities: Row label -> hashes of everything that decides its cells' results.
        added: Results folders whose cells join the tables.
    """

    methods: Sequence[Method]
    cells: list[Cell]
    surroundings: Mapping
    results: Results
    description: dict
    identities: dict[str, dict[str, str]]
    added: list[Results] = field(default_factory=list)

    @classmethod
    def read(
        cls,
        methods: Sequence[Method],
        seeds: Sequence[int],
        surroundings: Mapping,
        results: Results,
        about: Mapping,
        settings: object = None,
    ) -> Plan:
        """Work out the cells and check that they fit the results folder.

        Args:
            about: Title and published numbers.
            settings: What else decides every cell's result.

        Raises:
            ValueError: The folder holds results on other pools.
        """
        description = _description(surroundings, about)
        results.check(description)
        # Folders of the run change each time and decide nothing.
        path = {key: f"<{key}>" for key in surroundings.get("path") or {}}
        around = {**surroundings, "path": path}
        configs = {
            m.label: OmegaConf.to_container(resolve_method(m, around, None))
            for m in methods
        }
        identities = {
            label: {
                "pools": description["pools"],
                "method": short_hash([short_hash(config), settings]),
            }
            for label, config in configs.items()
        }
        cells = make_cells(methods, seeds)
        return cls(methods, cells, surroundings, results, description, identities)

    def is_finished(self, cell: Cell, retry_failed: bool) -> bool:
        """Whether a cell need not run."""
        identity = self.identities[cell.method.label]
        return self.results.is_finished(cell, identity, retry_failed)

    def marks(self, cell: Cell) -> dict:
        """What a cell's record says about its place in the comparison."""
        label = cell.method.label
        order = list(self.identities).index(label)
        return {"identity": self.identities[label], "order": order}

    def work_folder(self, cell: Cell) -> Path:
        """Where the files of a cell's own go."""
        return self.results.folder / "work" / cell.id

    def table(self, retry_failed: bool) -> Table:
        """The cells for the terminal."""
        table = Table("cell", "method", "status", title=Text(self.description["title"]))
        for cell in self.cells:
            status = "finished" if self.is_finished(cell, retry_failed) else "to run"
            table.add_row(Text(cell.id), Text(cell.method.label), status)
        return table


def _description(surroundings: Mapping, about: Mapping) -> dict:
    run_folder = (surroundings["path"] or {}).get("log_dir")
    pools = [
        plain_config(surroundings[p], run_folder) for p in ("modelpool", "taskpool")
    ]
    return {
        "format": FORMAT,
        **about,
        "pools": short_hash(pools),
        "modelpool": pools[0],
        "taskpool": pools[1],
        "tasks": [],
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
