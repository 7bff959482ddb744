"""Finished cells of other results folders, which join a comparison's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..common import get_logger
from .files import as_plain, read_json, slug, write_json
from .store import Results, applies

log = get_logger(__name__)


def read_added(folders: object, results: Results) -> list[Results]:
    """The results folders that `add` names."""
    plain = as_plain(folders) or []
    if not isinstance(plain, list) or not all(isinstance(f, str) for f in plain):
        raise ValueError(
            f"add is {plain!r}, expected a list of results folders such as"
            " add='[outputs/compare/first]'."
        )
    added = [Results(folder) for folder in plain]
    for earlier in added:
        if not earlier.cells.is_dir() or earlier.description() is None:
            raise ValueError(
                f"add: {earlier.folder} is not a results folder: it needs compare.json and"
                " cells/."
            )
        if earlier.folder.resolve() == results.folder.resolve():
            raise ValueError(f"add: {earlier.folder} is the results folder itself.")
    names = [earlier.folder.resolve().name for earlier in added]
    if len(set(names)) < len(names):
        raise ValueError(f"add: the folders need names of their own, got {names}.")
    return added


def check_tasks(added: Sequence[Results], tasks: Sequence[str] | None) -> None:
    """Raise unless added results are on the same tasks."""
    for earlier in added:
        theirs = earlier.described()["tasks"]
        if tasks and theirs and set(tasks) != set(theirs):
            raise ValueError(
                f"add: {earlier.folder} is on the tasks {theirs}, this comparison on"
                f" {list(tasks)}; tables need the same tasks."
            )


def add_results(
    results: Results, added: Sequence[Results], identities: Mapping, shared: Mapping
) -> None:
    """Copy cells of other folders; those run with other settings become rows of their own.

    A cell that this folder ran itself is left as it is.
    """
    known = (r for r in results.records() if r.get("added_from"))
    copies = {(r["label"], r["seed"]): results.path(r) for r in known}
    for earlier in added:
        name, renamed = earlier.folder.resolve().name, False
        for record in earlier.records():
            record["added_from"] = str(earlier.folder)
            if applies(record, identities, shared):
                record["identity"] |= shared
            else:
                renamed = True
                record["id"] += f"--{slug(name)}"
                record["cell"] += f"--{slug(name)}"
                record["label"] += f" [{name}]"
            path = results.path(record)
            with results.locked():
                if not path.exists() or read_json(path).get("added_from"):
                    write_json(path, record)
                former = copies.get((record["label"], record["seed"]), path)
                if former != path:  # another release gave it another id
                    former.unlink(missing_ok=True)
        if renamed:
            log.warning(
                "%s was measured with other settings: its rows carry its name",
                earlier.folder,
            )
