"""The results folder: finished cells as files that several processes may share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from .files import FORMAT, read_json, write_json

if TYPE_CHECKING:  # gathering needs none of what running needs
    from .cells import Cell

_SUMMARY = "compare.json"


class Results:
    """Reads and writes a results folder; see docs/compare.md for its layout."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.cells = self.folder / "cells"

    # -- the comparison ----------------------------------------------------------------

    def description(self) -> dict | None:
        """What ``compare.json`` says; None if there is none.

        Raises:
            ValueError: It is damaged or of another format.
        """
        path = self.folder / _SUMMARY
        if not path.is_file():
            return None
        return read_json(path)

    def check(self, description: Mapping) -> None:
        """Raise unless this folder is free or holds results on the same pools.

        Raises:
            ValueError: It holds results on other pools; the message says what differs.
        """
        known = self.description()
        if known is None or known["pools"] == description["pools"]:
            return
        pools = ("modelpool", "taskpool")
        differing = [
            name
            for pool in pools
            for name in _differences(known[pool], description[pool], pool)
        ]
        raise ValueError(
            f"{self.folder} holds results on other pools; they differ in {differing[:5]}."
            " Give results=<another folder>, and add='[...]' to show both together."
        )

    def describe(self, description: Mapping) -> None:
        """Write ``compare.json``; when the comparison started, and its tasks, are kept."""
        with self.locked():
            self.check(description)
            known = self.description() or {}
            kept = {key: known[key] for key in ("started", "tasks") if known.get(key)}
            write_json(self.folder / _SUMMARY, {**description, **kept})

    def note_tasks(self, tasks: Sequence[str]) -> None:
        """Add tasks that an evaluation reported to ``compare.json``."""
        with self.locked():
            known = self.description() or {"format": FORMAT, "tasks": []}
            listed = list(dict.fromkeys([*known["tasks"], *tasks]))
            if listed != known["tasks"]:
                write_json(self.folder / _SUMMARY, known | {"tasks": listed})

    # -- cells -------------------------------------------------------------------------

    def records(self) -> list[dict]:
        """Every finished cell, in the order of their files' names."""
        return [read_json(path) for path in sorted(self.cells.glob("*.json"))]

    def of_cell(self, cell: Cell) -> list[dict]:
        """The records of one cell: none, one, or one for each model of it."""
        return [
            r for r in map(read_json, self._paths(cell.id)) if r.get("cell") == cell.id
        ]

    def _paths(self, cell_id: str) -> list[Path]:
        whole = self.cells / f"{cell_id}.json"
        parts = sorted(self.cells.glob(f"{cell_id}.*.json"))  # ids hold no * ? [
        return [whole, *parts] if whole.is_file() else parts

    def replace(self, cell: Cell, records: Sequence[Mapping]) -> None:
        """Write a cell's records, and remove what it left earlier."""
        with self.locked():
            paths = [self.cells / f"{record['id']}.json" for record in records]
            for path, record in zip(paths, records, strict=True):
                write_json(path, record)
            for path in self._paths(cell.id):
                if path not in paths and read_json(path).get("cell") == cell.id:
                    path.unlink(missing_ok=True)

    def is_finished(self, cell: Cell, identity: Mapping, retry_failed: bool) -> bool:
        """Whether the cell need not run: its records are all there and still apply."""
        records = self.of_cell(cell)
        if not records or {r["part"] for r in records} < set(records[0]["parts"]):
            return False
        if any(record["identity"] != identity for record in records):
            return False
        return not retry_failed or all(r["status"] == "done" for r in records)

    def retire_changed(self, labels: Mapping[str, Mapping]) -> list[str]:
        """Move cells whose method's config has changed into ``stale/``.

        Args:
            labels: Method label -> identity its cells must have.

        Returns:
            Ids of the cells moved.
        """
        moved = []
        with self.locked():
            for record in self.records():
                wanted = labels.get(base_label(record))
                kept = wanted is None or record["identity"] == wanted
                if kept or record.get("added_from"):
                    continue
                name = f"{record['id']}-{record['identity']['method']}.json"
                (self.folder / "stale").mkdir(exist_ok=True)
                os.replace(
                    self.cells / f"{record['id']}.json", self.folder / "stale" / name
                )
                moved.append(record["id"])
        return moved

    # -- processes ---------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the whole folder, for short changes."""
        with self._lock("results"):
            yield

    @contextmanager
    def claimed(self, cell: Cell, wait: bool) -> Iterator[bool]:
        """Hold one cell; gives False at once if another process does and `wait` is off."""
        lock = self._lock(cell.id)
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _lock(self, name: str) -> FileLock:
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{name}.lock")


def base_label(record: Mapping) -> str:
    """A record's label without the name of its model, if its method made several."""
    part = record.get("part")
    return record["label"].removesuffix(f" / {part}") if part else record["label"]


def _differences(old: object, new: object, path: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}")
    elif old != new:
        yield path
