"""What a comparison will run: its cells, how finished ones are found again, what it takes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from fusion_bench import BaseModelPool
from omegaconf import DictConfig, OmegaConf
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from ..common.options import settings_hash
from .cells import Cell, make_cells
from .files import FORMAT, as_plain
from .inputs import downloads, inputs_identity, references
from .methods import Method
from .published import published_for
from .records import failed_record
from .store import Results


def resolve_method(
    method: Method, surroundings: Mapping, seed: int | None
) -> DictConfig:
    """The method's config, what it says of the job around it and ``${seed}`` filled in."""
    job = OmegaConf.create({**surroundings, "seed": seed, "method": method.config})
    return DictConfig(OmegaConf.to_container(job.method, resolve=True))


def plain_config(config: object, log_dir: str | None = None) -> Any:
    """A resolved config as plain values, without the run folder that changes each time."""
    if OmegaConf.is_config(config):
        config = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    text = json.dumps(config, default=str)
    if log_dir:
        text = text.replace(json.dumps(str(log_dir))[1:-1], "<log_dir>")
    return json.loads(text)


class Plan:
    """The cells of one command, and the results folder they go to.

    Attributes:
        cells: All cells, finished ones too.
        description: What ``compare.json`` will hold.
        identities: Row label -> hashes of everything that decides its cells' results.
        configs: Row label -> the method's options, all of them.
        shared: What all identities have in common.
        added: Results folders whose cells join the tables.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        seeds: Sequence[int],
        results: Results,
        surroundings: Mapping,
        about: Mapping,
        settings: object,
    ):
        """Work out the cells and check that they fit the results folder.

        Args:
            methods: The rows.
            seeds: Each gives every row one cell.
            results: Where cells are kept.
            surroundings: Top-level keys of the job that method configs may refer to.
            about: Title, and `published` as the config has it.
            settings: What else decides every cell's result.
        """
        self.methods, self.results, self.surroundings = methods, results, surroundings
        self.cells = make_cells(methods, seeds)
        self.added: list[Results] = []
        self.description = _description(surroundings, about)
        results.check(self.description)
        # Folders of the run change each time and decide nothing.
        path = {key: f"<{key}>" for key in surroundings["path"]}
        around = {**surroundings, "path": path}
        self.configs = {
            m.label: as_plain(resolve_method(m, around, None)) for m in methods
        }
        self.shared: dict[str, str] = {
            "pools": self.description["pools"],
            "settings": settings_hash(settings, 8),
        }
        self.identities = {
            label: {
                **self.shared,
                "method": settings_hash([config, settings, *references(config)], 8),
            }
            for label, config in self.configs.items()
        }

    def note_inputs(self, modelpool: BaseModelPool, taskpool: object) -> None:
        """Add what the loaded pools read to every identity."""
        configs = [self.description[name] for name in ("modelpool", "taskpool")]
        self.shared["inputs"] = inputs_identity(modelpool, taskpool, *configs)
        for identity in self.identities.values():
            identity |= self.shared

    def is_finished(self, cell: Cell, retry_failed: bool) -> bool:
        """Whether a cell need not run; before `note_inputs`, by the configs alone."""
        identity = self.identities[cell.method.label]
        return self.results.is_finished(cell, identity, retry_failed)

    def marks(self, cell: Cell) -> dict:
        """What a cell's record says about its place in the comparison."""
        label = cell.method.label
        order = list(self.identities).index(label)
        return {"identity": self.identities[label], "order": order}

    def as_failed(self) -> list[dict]:
        """Records as if no cell had come to its end."""
        return [failed_record(c, ValueError(), 0) | self.marks(c) for c in self.cells]

    def failed(self) -> list[str]:
        """One line for each of the cells that failed."""
        found = [(cell, self.results.of_cell(cell)) for cell in self.cells]
        return [
            f"{cell.id}: {records[0]['error']['message']}"
            for cell, records in found
            if any(record["status"] == "failed" for record in records)
        ]

    def work_folder(self, cell: Cell) -> Path:
        """Where the files of a cell's own go."""
        return self.results.folder / "work" / cell.id

    def forecast(self, retry_failed: bool) -> Iterator[Table | Text]:
        """For the terminal: the cells, and what those take that are to run."""
        table = Table("cell", "method", "status", title=Text(self.description["title"]))
        missing = [c for c in self.cells if not self.is_finished(c, retry_failed)]
        for cell in self.cells:
            status = "to run" if cell in missing else "finished"
            table.add_row(Text(cell.id), Text(cell.method.label), status)
        yield table
        if missing:
            known = [r for of in (self.results, *self.added) for r in of.records()]
            pools = (self.description[name] for name in ("modelpool", "taskpool"))
            yield Text("\n".join([*totals(missing, known), downloads(*pools)]))


def _description(surroundings: Mapping, about: Mapping) -> dict:
    run_folder = surroundings["path"].get("log_dir")
    names = ("modelpool", "taskpool")
    pools = {name: plain_config(surroundings[name], run_folder) for name in names}
    return {
        "format": FORMAT,
        **about,
        "published": published_for(about["published"], *pools.values()),
        "pools": settings_hash(list(pools.values()), 8),
        **pools,
        "tasks": [],
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


class Costs(NamedTuple):
    """Seconds, and peak memory in MiB."""

    seconds: float
    mib: float

    def __str__(self) -> str:
        return f"{timedelta(seconds=round(self.seconds))}, {decimal(int(self.mib * 2**20))}"


def costs(cell: Cell, records: Sequence[Mapping]) -> dict[str, Costs]:
    """Device -> what a cell will take there: the mean of what finished cells took.

    Those are of the same row, or else of the same method with other options.
    """
    done = [r for r in records if r["status"] == "done"]
    same = [r for r in done if r["label"] == cell.method.label]
    near = same or [r for r in done if r["method"] == cell.method.name]
    found: dict[str, list[Costs]] = {}
    for record in near:
        seconds = sum(part or 0.0 for part in record["seconds"].values())
        peak = record["peak_memory_mib"]
        measured = Costs(seconds, peak["cuda"] or peak["cpu"] or 0.0)
        found.setdefault(str(record["device"]), []).append(measured)
    return {
        device: Costs(*map(mean, zip(*measured, strict=True)))
        for device, measured in found.items()
    }


def totals(cells: Sequence[Cell], records: Sequence[Mapping]) -> list[str]:
    """A line for each device on what the cells take together, one on those not known."""
    known = [found for cell in cells if (found := costs(cell, records))]
    lines = []
    for device in dict.fromkeys(name for found in known for name in found):
        seconds, mib = zip(*(f[device] for f in known if device in f), strict=True)
        both = Costs(sum(seconds), max(mib))
        lines.append(f"{len(seconds)} of {len(cells)} cells on {device}: {both}.")
    if unknown := len(cells) - len(known):
        lines.append(
            f"{unknown} of {len(cells)} cells: not known until one of the same method is"
            " finished, here or in a folder of add=."
        )
    return lines
