"""Pictures of merging coefficients (tasks x layers) and tables of cosines."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from ..results import Comparison, Row

SEQUENTIAL, DIVERGING = "cividis", "PuOr"  # readable with any colour vision


def coefficient_maps(comparison: Comparison) -> list[dict]:
    """One picture per method that has coefficients: the mean over its seeds."""
    return [found for row in comparison.finished if (found := _coefficient_map(row))]


def _coefficient_map(row: Row) -> dict | None:
    saved = [artifact for _, artifact in row.artifacts("coefficients")]
    if not saved:
        return None
    tasks, keys = saved[0]["tasks"], saved[0]["keys"]
    alike = [a["values"] for a in saved if (a["tasks"], a["keys"]) == (tasks, keys)]
    values = np.atleast_2d(np.asarray(alike, dtype=np.float64).mean(axis=0))
    if not values.size or not np.isfinite(values).all():
        return None
    low, high, name = coefficient_range(values)
    return {
        "row": row,
        "tasks": tasks,
        "tensors": keys,
        "coefficients": [[float(f"{value:.3g}") for value in line] for line in values],
        "picture": _picture((values - low) / ((high - low) or 1), name),
        "low": f"{low:.2f}",
        "high": f"{high:.2f}",
        "colours": [to_hex(colormaps[name](step / 8)) for step in range(9)],
        "ticks": _block_ticks(keys),
        "seeds": len(alike),
        "summary": [_summary(*pair, keys) for pair in zip(tasks, values, strict=True)],
    }


def coefficient_range(values: np.ndarray) -> tuple[float, float, str]:
    """Ends of the colours.

    As far below 0 as above where some are below 0; else from 0, or from the smallest
    where all are so large that they would look alike.
    """
    largest = float(np.abs(values).max()) or 1.0
    smallest = float(np.min(values))
    if smallest < 0:
        return -largest, largest, DIVERGING
    alike = 0.5 * largest < smallest < 0.99 * largest
    return smallest if alike else 0.0, largest, SEQUENTIAL


def _picture(shares: np.ndarray, name: str) -> str:
    """A PNG of one pixel per value, as a data URI. `shares` lie in [0, 1]."""
    pixels = (colormaps[name](shares)[..., :3] * 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return (
        f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    )


def _block_ticks(keys: list[str]) -> list[dict]:
    """Where every block of the model starts: position in percent and its number.

    Without numbers in the names, some columns are counted instead. At most 13 ticks.
    """
    starts: dict[str, int] = {}
    for column, key in enumerate(keys):
        if found := re.search(r"(?:^|\.)(\d+)\.", key):
            starts.setdefault(found[1], column)
    if len(starts) < 2:
        columns = range(0, len(keys), max(1, len(keys) // 8))
        starts = {str(column): column for column in columns}
    items = list(starts.items())[:: -(-len(starts) // 13)]
    return [{"left": round(100 * c / len(keys), 2), "text": text} for text, c in items]


def _summary(task: str, line: np.ndarray, keys: list[str]) -> dict:
    figures = {"mean": line.mean(), "low": line.min(), "high": line.max()}
    texts = {name: f"{value:.3f}" for name, value in figures.items()}
    return {"task": task, **texts, "highest": keys[int(line.argmax())]}


def cosine_tables(comparison: Comparison) -> list[dict]:
    """Cosines between task vectors before and after, of each method's first seed."""
    tables = []
    for row in comparison.finished:
        for seed, artifact in row.artifacts("cosines")[:1]:
            names = ("before", "after")
            pair = {name: np.asarray(artifact[name], float) for name in names}
            largest = max(_off_diagonal(m).max(initial=0) for m in pair.values())
            matrices = [_matrix(name, m, largest) for name, m in pair.items()]
            table = {"row": row, "seed": seed, "tasks": artifact["tasks"]}
            tables.append(table | {"matrices": matrices})
    return tables


def _matrix(name: str, matrix: np.ndarray, largest: float) -> dict:
    off_diagonal = _off_diagonal(matrix)
    mean = off_diagonal.mean() if off_diagonal.size else 0.0
    # How much of the sign's colour a cell gets, in percent; text stays readable.
    strengths = 60 * np.nan_to_num(np.abs(matrix) / (largest or 1), posinf=0).clip(
        max=1
    )

    def entry(i: int, j: int) -> dict:
        value, strength = float(matrix[i, j]), round(strengths[i, j])
        texts = {"text": cosine_text(value), "strength": strength}
        return {"value": value, "diagonal": i == j, **texts}

    places = range(len(matrix))
    lines = [[entry(i, j) for j in places] for i in places]
    return {"name": name, "mean": f"{mean:.3f}", "lines": lines}


def _off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """Absolute values off the diagonal; what is not finite counts as 0."""
    values = np.abs(matrix[~np.eye(len(matrix), dtype=bool)])
    return np.nan_to_num(values, nan=0.0, posinf=0.0)


def cosine_text(value: float) -> str:
    """Three digits without the leading zero, as tables of cosines write them."""
    text = f"{round(value, 3) + 0.0:.3f}"  # adding zero turns -0.0 into 0.0
    return text.replace("1.000", "1").replace("0.", ".", 1).replace("-", "−")
