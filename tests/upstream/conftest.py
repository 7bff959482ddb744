"""Settings shared by the tests of this folder."""

import pytest
import torch
from release_copy import small_release

# Models of a few hundred numbers: threads only get in each other's way.
torch.set_num_threads(1)


@pytest.fixture
def release(tmp_path):
    """The parts of a FusionBench checkout that an export reads or changes."""
    return small_release(tmp_path / "fusion_bench_checkout")
