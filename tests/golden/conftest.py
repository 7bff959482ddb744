"""Recorded values of other implementations, where they are at hand."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(
    os.environ.get("FUSION_PLUGINS_GOLDEN") or REPOSITORY.parent / "shared" / "golden"
)


def _load(name: str) -> dict[str, Tensor]:
    file = FOLDER / f"{name}.npz"
    if not file.is_file():
        pytest.skip(f"no recording {file}; set FUSION_PLUGINS_GOLDEN to their folder")
    with np.load(file, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Tensor]]:
    """Recording name -> its arrays as tensors; skips the test if it is absent."""
    return _load
