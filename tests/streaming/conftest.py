"""Pools of tiny language models, made once; do not write into them."""

import pytest
import torch
from tiny_llamas import save_family


@pytest.fixture(scope="session")
def llamas(tmp_path_factory) -> dict[str, str]:
    """float32, untied."""
    return save_family(tmp_path_factory.mktemp("llamas"))


@pytest.fixture(scope="session")
def tied_llamas(tmp_path_factory) -> dict[str, str]:
    return save_family(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.fixture(scope="session")
def bfloat16_llamas(tmp_path_factory) -> dict[str, str]:
    return save_family(tmp_path_factory.mktemp("bfloat16"), dtype=torch.bfloat16)
