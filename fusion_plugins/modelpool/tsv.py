"""Sentences and labels from a file with tab-separated fields."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset


class TsvDataset(Dataset):
    """A text file as a dataset: a header line, then one sample per line.

    The header names the fields, such as ``label<TAB>text``; samples are dicts of them.
    Quotes are ordinary characters. ``label`` becomes an integer, or a float if any label
    of the file is not whole.

    Args:
        path: The file, UTF-8.
        samples: At most this many samples, chosen by `seed`, in the file's order.
        seed: Of that choice.

    Raises:
        ValueError: No such file, not UTF-8, a line with other fields than the header, a
            label that is not a number, or no samples.
    """

    def __init__(self, path: str | Path, samples: int | None = None, seed: int = 0):
        self.rows = _read(Path(path))
        if samples is not None and samples < len(self.rows):
            chosen = np.random.default_rng(seed).permutation(len(self.rows))[:samples]
            self.rows = [self.rows[index] for index in np.sort(chosen)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"{path} is not a file; expected tab-separated text.")
    try:
        lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}). Save it as UTF-8.") from error
    if len(lines) < 2:
        raise ValueError(
            f"{path} has {len(lines)} line(s): a header, such as label<TAB>text, and at"
            " least one sample are needed."
        )
    header, *rows = [line.split("\t") for line in lines]
    for number, fields in enumerate(rows, 2):
        if len(fields) != len(header):
            raise ValueError(
                f"{path}, line {number} has {len(fields)} tab-separated fields, but the"
                f" header names {len(header)}: {header}."
            )
    samples: list[dict[str, Any]] = [
        dict(zip(header, row, strict=True)) for row in rows
    ]
    labels = [
        _number(row["label"], path, n)
        for n, row in enumerate(samples, 2)
        if "label" in row
    ]
    whole = all(label.is_integer() for label in labels)
    for sample, label in zip(samples, labels, strict=False):  # or there are none
        sample["label"] = int(label) if whole else label
    return samples


def _number(text: str, path: Path, line: int) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"{path}, line {line}: the label {text!r} is not a number; give classes as 0,"
            " 1, 2, ..."
        )
    return number
