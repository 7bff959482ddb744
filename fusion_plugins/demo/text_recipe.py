"""What a text pool is made of: how the experts are fine-tuned, and on which sentences."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..modelpool.tsv import TsvDataset
from .recipe import DemoInputError

TEXT_FORMAT = "text-1"  # of the pool folder


@dataclass(frozen=True)
class TextRecipe:
    """How every expert is trained; lengths in tokens, sizes in sentences.

    Attributes:
        seed: Of new heads, dropout, the choice and the order of sentences.
        max_length: Longer sentences are cut.
        epochs: Passes over the training sentences.
        lr: Peak of AdamW's learning rate; it rises for a tenth of the steps, then falls
            linearly to zero.
        train_sentences: At most this many per task, chosen by the seed.
        bfloat16: Run forward passes of the training in bfloat16 (autocast): about twice
            as fast where the processor has instructions for it, much slower elsewhere.
    """

    seed: int = 0
    max_length: int = 64
    batch_size: int = 32
    epochs: int = 2
    lr: float = 5e-5
    weight_decay: float = 0.01
    train_sentences: int = 3000
    bfloat16: bool = False

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            may_be_zero = field.name in ("seed", "weight_decay", "bfloat16")
            if value < 0 or (value == 0 and not may_be_zero):
                least = "0 or more" if may_be_zero else "above 0"
                raise DemoInputError(f"{field.name} must be {least}, got {value}")

    def to_dict(self) -> dict:
        """Plain values, as stored in pool.json."""
        return asdict(self)


@dataclass(frozen=True)
class TextTask:
    """One task's sentences: dicts with ``text`` and ``label`` from 0 to classes - 1."""

    name: str
    train: Sequence[dict]
    test: Sequence[dict]

    @property
    def classes(self) -> int:
        return 1 + max(row["label"] for row in (*self.train, *self.test))


def read_text_folder(
    folder: str | Path, tasks: Sequence[str] | None = None
) -> list[TextTask]:
    """Every ``NAME/{train,test}.tsv`` of the folder (or those in `tasks`), by name.

    Raises:
        DemoInputError: No such folder, task or file, or a file that is not as
            :class:`~fusion_plugins.modelpool.tsv.TsvDataset` reads it with ``label`` and
            ``text``.
    """
    folder = Path(folder)
    known = sorted(path.parent.name for path in folder.glob("*/train.tsv"))
    if not known:
        raise DemoInputError(
            f"{folder} holds no tasks: expected a folder per task with train.tsv and"
            " test.tsv"
        )
    unknown = [name for name in tasks or () if name not in known]
    if unknown:
        raise DemoInputError(f"no task {unknown} in {folder}; available: {known}")
    return [_read_task(folder / name) for name in tasks or known]


def _read_task(folder: Path) -> TextTask:
    splits = {}
    for split in ("train", "test"):
        path = folder / f"{split}.tsv"
        try:
            rows = list(TsvDataset(path).rows)
        except ValueError as error:
            raise DemoInputError(str(error)) from error
        missing = [field for field in ("label", "text") if field not in rows[0]]
        if missing:
            raise DemoInputError(f"{path} has no {missing}, only {list(rows[0])}")
        bad = [r["label"] for r in rows if r["label"] < 0 or r["label"] % 1]
        if bad:
            raise DemoInputError(f"{path}: labels must be 0, 1, 2, ...; got {bad[0]}")
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
