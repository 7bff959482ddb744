"""The whole method, killed twice and continued, ends as if nothing had happened."""

import killed_merge
import pytest
import torch
from forked import call

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tiny_pool_root, tmp_path_factory):
    """(what was found after each run, unbroken result, resumed result)."""
    folder = tmp_path_factory.mktemp("killed")
    found = call(killed_merge.kill, str(tiny_pool_root), folder)
    return found, *(torch.load(folder / f"{n}.pt") for n in ("unbroken", "resumed"))


def test_it_was_killed_twice_before_its_end(runs):
    (first, early), (second, late), (left, ended) = runs[0]
    assert not early and not late and ended
    assert 4 <= first < second < 14 and left == 0


def test_coefficients_model_and_history_are_the_unbroken_ones(runs):
    _, unbroken, resumed = runs
    assert (unbroken["raw"] - 0.3).abs().max() > 0.05
    assert torch.equal(resumed["raw"], unbroken["raw"])
    assert len(unbroken["losses"]) == 14 and resumed["losses"] == unbroken["losses"]
    assert resumed["guard"] == unbroken["guard"]
    for name, value in unbroken["model"].items():
        assert torch.equal(resumed["model"][name], value), name
