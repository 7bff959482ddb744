"""The results folder: finished cells as files that several processes may share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from ..common.folders import obstacle
from .files import FIX, FORMAT, checked_record, flatten, read_json, slug, write_json

_FOLDERS = ("cells", "figures", "locks", "stale", "work")
_FILES = (
    *("compare.json", "cells.csv", "differences.csv", "results.csv", "results.md"),
    *("results.tex", "report.html"),
)


class Cell(Protocol):
    """What a results folder knows of a cell: the name of its file."""

    @property
    def id(self) -> str: ...


class Results:
    """Reads and writes a results folder; see docs/compare.md for its layout."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.cells = self.folder / "cells"
        self.summary = self.folder / "compare.json"

    # -- the comparison ----------------------------------------------------------------

    def existing(self) -> Results:
        """This folder; raises ValueError unless it holds finished cells."""
        if not self.summary.is_file() or not any(self.cells.glob("*.json")):
            raise ValueError(
                f"{self.folder} holds no results of a comparison: it needs compare.json and"
                " cells/. Run fusion_bench --config-name compare results=<folder> first."
            )
        return self

    def description(self) -> dict | None:
        """What ``compare.json`` says; None if there is none."""
        return self.described() if self.summary.is_file() else None

    def described(self) -> dict:
        """What ``compare.json`` says; it must be there."""
        about = read_json(self.summary)
        if not isinstance(about.get("tasks"), list) or "title" not in about:
            raise ValueError(f"{self.summary} is damaged: no title or no tasks. {FIX}")
        return about

    def check(self, description: Mapping) -> None:
        """Raise unless this folder is free or holds results on the same pools."""
        known = self.description()
        if known is None or known.get("pools") == description["pools"]:
            return
        pools = ("modelpool", "taskpool")
        old, new = (
            dict(flatten({pool: about.get(pool) for pool in pools}))
            for about in (known, description)
        )
        names = [n for n in {**old, **new} if old.get(n) != new.get(n)]
        raise ValueError(
            f"{self.folder} holds results on other pools; they differ in {names[:5]}."
            " Give results=<another folder>, and add='[...]' to show both together."
        )

    def describe(self, description: Mapping) -> None:
        """Write ``compare.json``; when the comparison started, and its tasks, are kept."""
        with self.locked():
            self.check(description)
            known = self.description() or {}
            kept = {key: known[key] for key in ("started", "tasks") if known.get(key)}
            write_json(self.summary, {**description, **kept})

    def note_tasks(self, tasks: Sequence[str]) -> None:
        """Add tasks that an evaluation reported to ``compare.json``."""
        with self.locked():
            known = self.description() or {"format": FORMAT, "tasks": []}
            listed = list(dict.fromkeys([*known["tasks"], *tasks]))
            if listed != known["tasks"]:
                write_json(self.summary, known | {"tasks": listed})

    # -- cells -------------------------------------------------------------------------

    def path(self, record: Mapping) -> Path:
        """The file of a record."""
        return self.cells / f"{record['id']}.json"

    def records(self, pattern: str = "*") -> list[dict]:
        """Every finished cell, in the order of their files' names."""
        paths = sorted(self.cells.glob(f"{pattern}.json"))
        return [checked_record(path, read_json(path)) for path in paths]

    def of_cell(self, cell: Cell) -> list[dict]:
        """The records of one cell: none, one, or one for each model of it."""
        found = self.records(f"{cell.id}*")  # ids hold no * ? [
        return [record for record in found if record["cell"] == cell.id]

    def replace(self, cell: Cell, records: Sequence[Mapping]) -> None:
        """Write a cell's records, and remove what it left earlier."""
        with self.locked():
            earlier = set(map(self.path, self.of_cell(cell)))
            for record in records:
                write_json(self.path(record), record)
            for path in earlier - set(map(self.path, records)):
                path.unlink(missing_ok=True)

    def is_finished(self, cell: Cell, identity: Mapping, retry_failed: bool) -> bool:
        """Whether the cell need not run: its records are all there and still apply."""
        records = self.of_cell(cell)
        if not records or {r["part"] for r in records} < set(records[0]["parts"]):
            return False
        if not all(_is_same(identity, r["identity"]) for r in records):
            return False
        return not retry_failed or all(r["status"] == "done" for r in records)

    def retire_changed(self, identities: Mapping, shared: Mapping) -> list[str]:
        """Move own cells that do not apply any more into ``stale/``; gives their ids.

        Those of releases that did not note the settings that all rows share get them.
        """
        stale = []
        with self.locked():
            for record in self.records():
                whole = record["identity"] | shared
                if not applies(record, identities, shared):
                    stale += [] if record.get("added_from") else [record]
                elif whole != record["identity"]:
                    write_json(self.path(record), record | {"identity": whole})
            for record in stale:
                mark = slug(str(record["identity"].get("method")))
                (self.folder / "stale").mkdir(exist_ok=True)
                name = self.folder / "stale" / f"{record['id']}-{mark}.json"
                os.replace(self.path(record), name)
        return [record["id"] for record in stale]

    # -- processes ---------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the whole folder, for short changes."""
        with self._lock("results"):
            yield

    @contextmanager
    def claimed(self, cell: Cell, wait: bool) -> Iterator[bool]:
        """Hold one cell; gives False at once if another process does and `wait` is off."""
        try:
            lock = self._lock(cell.id).acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        with lock:
            yield True

    def _lock(self, name: str) -> FileLock:
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{name}.lock")


def results_folder(path: object) -> Path:
    """The folder that `results` names; what cannot be one raises ValueError."""
    if not isinstance(path, (str, os.PathLike)) or not str(path).strip():
        raise ValueError(f"results is {path!r}, expected the name of a folder.")
    folder = Path(path)
    for part in (*map(folder.joinpath, _FOLDERS), folder, *folder.parents):
        problem = obstacle(part)
        if problem is not None:
            raise ValueError(f"results is {path}, but {part} {problem}, not a folder.")
    for part in map(folder.joinpath, _FILES):
        if part.is_dir():
            raise ValueError(f"results is {path}, but {part} is a folder, not a file.")
    return folder


def applies(record: Mapping, identities: Mapping, shared: Mapping) -> bool:
    """Whether a record has the identity of its row, or what all rows share."""
    row = record["label"].removesuffix(f" / {record['part']}")
    return _is_same(identities.get(row, shared), record["identity"])


def _is_same(wanted: Mapping, known: Mapping) -> bool:
    """Whether all that is wanted is so; `settings` may be missing, see `retire_changed`."""
    return wanted.items() <= {"settings": wanted["settings"], **known}.items()
