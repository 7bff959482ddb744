"""Pictures of merging coefficients (tasks x layers) and tables of cosines."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from .results import Comparison, Row

SEQUENTIAL, DIVERGING = "cividis", "PuOr"  # readable with any colour vision
_BLOCK = re.compile(r"(?:^|\.)(\d+)\.")


def coefficient_maps(comparison: Comparison) -> list[dict]:
    """One picture per method that has coefficients: the mean over its seeds."""
    maps = [_coefficient_map(row) for row in comparison.finished]
    return [found for found in maps if found]


def _coefficient_map(row: Row) -> dict | None:
    saved = row.artifacts("coefficients")
    if not saved:
        return None
    first = saved[0][1]
    alike = [
        a
        for _, a in saved
        if (a["tasks"], a["keys"]) == (first["tasks"], first["keys"])
    ]
    stack = np.asarray([artifact["values"] for artifact in alike], dtype=np.float64)
    values = np.atleast_2d(stack.mean(axis=0))
    if not values.size or not np.isfinite(values).all():
        return None
    low, high, name = coefficient_range(values)
    return {
        "row": row,
        "tasks": first["tasks"],
        "tensors": first["keys"],
        "coefficients": [[float(f"{value:.3g}") for value in line] for line in values],
        "picture": _picture((values - low) / ((high - low) or 1), name),
        "low": f"{low:.2f}",
        "high": f"{high:.2f}",
        "colours": [to_hex(colormaps[name](step / 8)) for step in range(9)],
        "ticks": _block_ticks(first["keys"]),
        "seeds": len(alike),
        "summary": [
            _summary(task, line, first["keys"])
            for task, line in zip(first["tasks"], values, strict=True)
        ],
    }


def coefficient_range(values: np.ndarray) -> tuple[float, float, str]:
    """Ends of the colours.

    As far below 0 as above where some are below 0; else from 0, or from the smallest
    where all are so large that they would look alike.
    """
    values = np.asarray(values)
    largest = float(np.abs(values).max()) or 1.0
    if values.min() < 0:
        return -largest, largest, DIVERGING
    smallest = float(values.min())
    alike = 0.5 * largest < smallest < 0.99 * largest
    return smallest if alike else 0.0, largest, SEQUENTIAL


def _picture(shares: np.ndarray, name: str) -> str:
    """A PNG of one pixel per value, as a data URI. `shares` lie in [0, 1]."""
    pixels = (colormaps[name](shares)[..., :3] * 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(
        "ascii"
    )


def _block_ticks(keys: list[str]) -> list[dict]:
    """Where every block of the model starts: position in percent and its number.

    Without numbers in the names, some columns are counted instead. At most 13 ticks.
    """
    starts: dict[str, int] = {}
    for column, key in enumerate(keys):
        found = _BLOCK.search(key)
        if found:
            starts.setdefault(found[1], column)
    if len(starts) < 2:
        step = max(1, len(keys) // 8)
        starts = {str(column): column for column in range(0, len(keys), step)}
    items = list(starts.items())
    items = items[:: -(-len(items) // 13)]
    return [{"left": round(100 * c / len(keys), 2), "text": text} for text, c in items]


def _summary(task: str, line: np.ndarray, keys: list[str]) -> dict:
    return {
        "task": task,
        "mean": f"{line.mean():.3f}",
        "low": f"{line.min():.3f}",
        "high": f"{line.max():.3f}",
        "highest": keys[int(line.argmax())],
    }


def cosine_tables(comparison: Comparison) -> list[dict]:
    """Cosines between task vectors before and after, of each method's first seed."""
    tables = []
    for row in comparison.finished:
        for seed, artifact in row.artifacts("cosines")[:1]:
            matrices = [
                np.asarray(artifact[name], float) for name in ("before", "after")
            ]
            largest = max(_off_diagonal(matrix).max(initial=0) for matrix in matrices)
            tables.append(
                {
                    "row": row,
                    "seed": seed,
                    "tasks": artifact["tasks"],
                    "largest": f"{largest:.3f}",
                    "matrices": [
                        _matrix(name, matrix, largest)
                        for name, matrix in zip(
                            ("before", "after"), matrices, strict=True
                        )
                    ],
                }
            )
    return tables


def _matrix(name: str, matrix: np.ndarray, largest: float) -> dict:
    off_diagonal = _off_diagonal(matrix)
    mean = off_diagonal.mean() if off_diagonal.size else 0.0
    lines = [
        [
            {"text": cosine_text(value), "value": value, "diagonal": i == j}
            | {"strength": _strength(value, largest)}
            for j, value in enumerate(line)
        ]
        for i, line in enumerate(matrix.tolist())
    ]
    return {"name": name, "mean": f"{mean:.3f}", "lines": lines}


def _strength(value: float, largest: float) -> int:
    """How much of the sign's colour a cell gets, in percent; text stays readable."""
    return round(60 * min(abs(value) / (largest or 1), 1)) if np.isfinite(value) else 0


def _off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """Absolute values off the diagonal; what is not finite counts as 0."""
    values = np.abs(matrix[~np.eye(len(matrix), dtype=bool)])
    return np.nan_to_num(values, nan=0.0, posinf=0.0)


def cosine_text(value: float) -> str:
    """Three digits without the leading zero, as tables of cosines write them."""
    text = f"{round(value, 3) + 0.0:.3f}"  # adding zero turns -0.0 into 0.0
    if text in ("1.000", "-1.000"):
        return text[:-4].replace("-", "−")
    return text.replace("0.", ".", 1).replace("-", "−")
