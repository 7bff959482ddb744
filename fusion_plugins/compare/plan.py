"""What a comparison will run: its cells, and how finished ones are found again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from rich.table import Table
from rich.text import Text

from .cells import Cell, make_cells, method_identity, plain_config, pools_identity
from .files import FORMAT
from .methods import Method, short_hash
from .store import Results


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
            methods: The rows.
            seeds: Of every row.
            surroundings: Top-level keys of the job.
            results: The results folder.
            about: Title and published numbers.
            settings: What else decides every cell's result.

        Raises:
            ValueError: The folder holds results on other pools.
        """
        description = _description(surroundings, about)
        results.check(description)
        identities = {
            method.label: {
                "pools": description["pools"],
                "method": short_hash([method_identity(method, surroundings), settings]),
            }
            for method in methods
        }
        cells = make_cells(methods, seeds)
        return cls(methods, cells, surroundings, results, description, identities)

    def is_finished(self, cell: Cell, retry_failed: bool) -> bool:
        """Whether a cell need not run."""
        identity = self.identities[cell.method.label]
        return self.results.is_finished(cell, identity, retry_failed)

    def marks(self, cell: Cell) -> dict:
        """What a cell's record says about its place in the comparison."""
        labels = list(self.identities)
        label = cell.method.label
        return {"identity": self.identities[label], "order": labels.index(label)}

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
    modelpool = plain_config(surroundings["modelpool"], run_folder)
    taskpool = plain_config(surroundings["taskpool"], run_folder)
    return {
        "format": FORMAT,
        **about,
        "pools": pools_identity(modelpool, taskpool),
        "modelpool": modelpool,
        "taskpool": taskpool,
        "tasks": [],
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
