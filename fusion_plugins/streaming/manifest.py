"""``merge.json``: what a folder's merge was made of, read again and compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PARTS = ("options", "inputs", "versions")  # of what a merge's numbers depend on


def read_manifest(file: Path) -> dict[str, Any]:
    """What an earlier run has written; empty without a file, ValueError if damaged."""
    if not file.is_file():
        return {}
    try:
        held = json.loads(file.read_text())
        for part in (*PARTS, "statistics"):
            held[part] = dict(held.get(part, {}))
        held["shards"] = dict(held["shards"])
        names = held.get("companions", {})  # in older manifests a list
        hashes = dict.fromkeys(names) if isinstance(names, list) else dict(names)
        held["companions"] = {str(Path(name)): v for name, v in hashes.items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is damaged, so that nothing tells what {file.parent} holds. Delete"
            " that folder, or choose another one with method.output."
        ) from error
    return held


def difference(held: Mapping, state: Mapping) -> str:
    """The first entry in which two manifests differ."""
    for part in PARTS:
        before, now = held.get(part, {}), state[part]
        for key in {**before, **now}:
            there, here = before.get(key), now.get(key)
            if there == here:
                continue
            said = _other_file(there, here) if part == "inputs" else None
            return f"{key}: {said or f'{there!r} there, {here!r} here'}"
    return f"format {held.get('format')!r} there, {state['format']!r} here"


def _other_file(there: Any, here: Any) -> str | None:
    """The first file in which two lists of identities differ; None if these are none."""
    lists = [files or [] for files in (there, here)]  # a model of one merge only
    if not all(isinstance(f, list) and f for files in lists for f in files):
        return None
    before, now = ({str(file[0]): file for file in files} for files in lists)
    for name in {**before, **now}:
        if name not in before or name not in now:
            return f"{name} only {'there' if name in before else 'here'}"
        if before[name] != now[name]:
            return f"{name} has another content or time of change"
    return None
