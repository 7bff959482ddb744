"""The sentences of a text pool."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..modelpool.tsv import TsvDataset
from .npz_folder import chosen_tasks
from .recipe import TextRecipe


@dataclass(frozen=True)
class TextTask:
    """One task's sentences: dicts with ``text`` and ``label`` from 0 to classes - 1."""

    name: str
    train: Sequence[dict]
    test: Sequence[dict]

    @property
    def classes(self) -> int:
        """How many there are, by the largest label."""
        return 1 + max(row["label"] for row in (*self.train, *self.test))


def read_text_folder(
    folder: str | Path, tasks: Sequence[str] | None = None
) -> list[TextTask]:
    """Every ``NAME/{train,test}.tsv`` of the folder (or those in `tasks`), by name.

    Raises:
        ValueError: No such folder, task or file, or a file that is not as
            :class:`~fusion_plugins.modelpool.tsv.TsvDataset` reads it with ``label`` and
            ``text``.
    """
    folder = Path(folder)
    known = sorted(path.parent.name for path in folder.glob("*/train.tsv"))
    if not known:
        raise ValueError(
            f"{folder} holds no tasks: expected a folder per task with train.tsv and"
            " test.tsv"
        )
    chosen = chosen_tasks(tasks, known, folder)
    return [_read_task(folder / name) for name in chosen]


def _read_task(folder: Path) -> TextTask:
    splits = {}
    for split in ("train", "test"):
        path = folder / f"{split}.tsv"
        rows = list(TsvDataset(path).rows)
        missing = [field for field in ("label", "text") if field not in rows[0]]
        if missing:
            raise ValueError(f"{path} has no {missing}, only {list(rows[0])}")
        bad = [r["label"] for r in rows if r["label"] < 0 or r["label"] % 1]
        if bad:
            raise ValueError(f"{path}: labels must be 0, 1, 2, ...; got {bad[0]}")
        splits[split] = rows
    return TextTask(folder.name, **splits)


def fingerprint(recipe: TextRecipe, tasks: Sequence[TextTask], encoder: Path) -> str:
    """Changes with anything that the experts depend on: 12 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(recipe.to_dict(), sort_keys=True).encode())
    for task in tasks:
        content = [task.name, list(task.train), list(task.test)]
        digest.update(json.dumps(content).encode())
    for path in sorted(encoder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
