"""Sentences and labels from a file with tab-separated fields."""

from __future__ import annotations

import csv
from pathlib import Path

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
        ValueError: No such file, a line with other fields than the header, a label that
            is not a number, or no samples.
    """

    def __init__(self, path: str | Path, samples: int | None = None, seed: int = 0):
        self.rows = _read(Path(path))
        if samples is not None and samples < len(self.rows):
            chosen = np.random.default_rng(seed).permutation(len(self.rows))[:samples]
            self.rows = [self.rows[index] for index in np.sort(chosen)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]


def _read(path: Path) -> list[dict]:
    if not path.is_file():
        raise ValueError(f"{path} is not a file; expected tab-separated text.")
    with open(path, encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if len(lines) < 2:
        raise ValueError(
            f"{path} has {len(lines)} line(s): a header, such as label<TAB>text, and at"
            " least one sample are needed."
        )
    header = lines[0]
    for number, fields in enumerate(lines[1:], 2):
        if len(fields) != len(header):
            raise ValueError(
                f"{path}, line {number} has {len(fields)} tab-separated fields, but the"
                f" header names {len(header)}: {header}."
            )
    rows = [dict(zip(header, fields, strict=False)) for fields in lines[1:]]
    if "label" in header:
        labels = _numbers([row["label"] for row in rows], path)
        rows = [row | {"label": label} for row, label in zip(rows, labels, strict=True)]
    return rows


def _numbers(texts: list[str], path: Path) -> list[int] | list[float]:
    values = []
    for number, text in enumerate(texts, 2):
        try:
            values.append(float(text))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: the label {text!r} is not a number; give classes"
                " as 0, 1, 2, ..."
            ) from error
    whole = all(value.is_integer() for value in values)
    return [int(value) for value in values] if whole else values
