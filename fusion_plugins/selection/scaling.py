"""The one-dimensional case: the scaling factor of a method, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fusion_bench import BaseAlgorithm
from lightning import Fabric

from ..pools.adapter import PoolAdapter
from ..pools.tasks import DataOptions
from . import response
from .candidates import Grid
from .pool import SAMPLES, SelectionData
from .runner import Selection


def select_scaling(
    config: Mapping[str, Any],
    adapter: PoolAdapter,
    build: Callable[[Mapping[str, Any], Fabric], BaseAlgorithm],
    fabric: Fabric,
    split: str,
    folder: Path | None,
) -> dict[str, Any]:
    """A method's config with the scaling that agrees best with the experts.

    Args:
        config: The method.
        adapter: Of the pool.
        build: A config and the fabric to run it with -> the method.
        fabric: Device and precision.
        split: Where unlabelled samples are from.
        folder: For ``selection.json`` and its picture; None to write nothing.

    Raises:
        ValueError: The method has no scaling factor, or the pool no samples.
    """
    grid = Grid.scan(config, "scaling=auto")
    data = SelectionData(options=DataOptions(split, max_samples=SAMPLES))
    search = Selection(grid, data, build, fabric).run(adapter).search
    response.publish(search, data.about, folder, "selection")
    return grid.method(response.chosen(search).settings)
