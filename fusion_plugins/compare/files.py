"""The files of a results folder, read, checked and written; names and options as text."""

from __future__ import annotations

import base64
import difflib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..common.options import plain, settings_hash

FORMAT = 1
_LONGEST = 80  # of a name in a file name, which may hold several


def as_plain(value: object) -> Any:
    """Lists and mappings of OmegaConf, and tuples, as lists and dictionaries."""
    return list(value) if isinstance(value, tuple) else plain(value)


def flatten(options: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Nested options as pairs of dotted name and value."""
    for key, value in options.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def did_you_mean(name: str, known: Sequence[str], prefix: str = "") -> str:
    """A sentence with the nearest known names; empty when none is near."""
    tail = [other for other in known if other.rpartition("/")[2] == name]
    near = [*tail, *difflib.get_close_matches(name, known, n=3, cutoff=0.5)]
    names = [repr(prefix + other) for other in dict.fromkeys(near)]
    return f" Did you mean {' or '.join(names[:3])}?" if near else ""


def slug(part: str) -> str:
    """A name as part of a file name; with a hash where the bare one is no such part."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", part)[:_LONGEST]
    return plain if plain == part else f"{plain}-{settings_hash(part, 8)}"


def write_json(path: Path, content: Mapping) -> None:
    """As `write_text`; numbers that are not finite become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_finite(content), indent=1, allow_nan=False, default=str)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write so that a reader, or a run after a kill, sees all of it or nothing."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict:
    """A file of a results folder."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a file of a comparison: {error!r}. {FIX}"
        ) from error
    if version != FORMAT:
        raise ValueError(
            f"{path} has format {version}, this release reads {FORMAT}. {FIX}"
        )
    return content


FIX = "Move it away and run the comparison again."
_FIELDS = {
    str: ("cell", "method", "label"),
    int: ("seed", "order"),
    list: ("parts",),
    dict: (
        *("tasks", "average", "seconds", "peak_memory_mib", "parameters"),
        *("overrides", "identity", "artifacts"),
    ),
    dict | None: ("config", "normalised"),
}
# Of releases that keep them.
_NEWER: dict[str, dict] = {
    name: {} for name in ("answers", "samples", "energy_joules", "memory_before_mib")
}


def checked_record(path: Path, record: dict) -> dict:
    """The content of a cell's file; raises ValueError where it is not whole."""
    given: dict[str, Any] = _NEWER | record
    wrong = [
        f"{name} is {str(given.get(name))[:80]!r}"
        for kind, names in (*_FIELDS.items(), (dict, _NEWER))
        for name in names
        if name not in given or not isinstance(given[name], kind)
    ]
    if record.get("id") != path.stem:
        wrong.append(f"id is {str(record.get('id'))[:80]!r}, not the file's name")
    wrong += _wrong_results(record) if not wrong else ()
    if wrong:
        raise ValueError(f"{path} is damaged or of another version: {wrong[0]}. {FIX}")
    return record


def _wrong_results(record: dict) -> Iterator[str]:
    if record.get("status") != "done":
        error = record.get("error")
        if record.get("status") != "failed" or not isinstance(error, dict):
            yield f"status is {record.get('status')!r}"
        elif not {"type", "message"} <= set(error):
            yield f"error holds only {list(error)}"
        return
    for name, numbers in (*record["tasks"].items(), ("average", record["average"])):
        whole = isinstance(numbers, dict) and record.get("metric") in numbers
        if not whole or not all(map(_is_number, numbers.values())):
            yield f"{name} is {str(numbers)[:80]!r}"

    for task, stored in record.get("answers", {}).items():
        if not _is_whole(stored):
            yield f"the answers of {task} are {str(stored)[:80]!r}"


def _is_whole(answers: object) -> bool:
    """Whether there are as many bits as samples."""
    if not isinstance(answers, dict) or not isinstance(answers.get("order"), str):
        return False
    samples, right = answers.get("samples"), answers.get("right")
    if not isinstance(samples, int) or not isinstance(right, str):
        return False
    return len(right) == 4 * -(-samples // 24) and right.isascii()


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, (int, float))


@dataclass(frozen=True)
class Answers:
    """A model's answers on one task's test samples.

    Attributes:
        right: Whether each is correct, shape (samples,), bool.
        order: Fingerprint of the true classes in the order of evaluation.
    """

    right: np.ndarray
    order: str

    def stored(self) -> dict[str, Any]:
        """As a cell's file holds them: a bit for each sample, in base64."""
        bits = base64.b64encode(np.packbits(self.right).tobytes()).decode("ascii")
        return {"samples": len(self.right), "order": self.order, "right": bits}

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Answers:
        """What `stored` gave."""
        packed = np.frombuffer(base64.b64decode(stored["right"]), dtype=np.uint8)
        bits = np.unpackbits(packed, count=stored["samples"])
        return cls(bits.astype(bool), stored["order"])
