"""A checkout of FusionBench in small."""

import pytest
from release_copy import small_release


@pytest.fixture
def release(tmp_path):
    """The parts of a FusionBench checkout that an export reads or changes."""
    return small_release(tmp_path / "fusion_bench_checkout")
