"""Two processes learn what one learns."""

import pytest
import torch
import two_processes
from forked import call
from toy_engine import cpu_fabric

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of the two processes wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    call(two_processes.main, folder)
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same cases on one process."""
    folder, fabric = tmp_path_factory.mktemp("alone"), cpu_fabric()
    return {
        name: two_processes.run_case(fabric, folder / name, options)
        for name, options in two_processes.CASES.items()
    }


@pytest.mark.parametrize("case", two_processes.CASES)
def test_two_processes_equal_one(ranks, alone, case):
    want = alone[case]
    assert (want["raw"] - 0.3).abs().max() > 0.02
    for rank in ranks:
        torch.testing.assert_close(rank[case]["raw"], want["raw"], rtol=0, atol=1e-6)
        torch.testing.assert_close(
            rank[case]["losses"], want["losses"], rtol=0, atol=1e-5
        )
    assert torch.equal(ranks[0][case]["raw"], ranks[1][case]["raw"])
    shares = [rank[case]["samples"] for rank in ranks]
    assert sum(shares) == want["samples"]


def test_the_guard_sees_the_same_on_every_process(ranks, alone):
    for case in two_processes.CASES:
        want = alone[case]["guard"]
        for rank in ranks:
            got = rank[case]["guard"]
            assert (
                [e["step"] for e in got] == [e["step"] for e in want] == [0, 4, 8, 10]
            )
            assert got[-1]["agreement"] == pytest.approx(
                want[-1]["agreement"], abs=0.02
            )


def test_heads_of_tasks_taken_in_turn_are_learned_alike(ranks):
    want = two_processes.run_with_heads(cpu_fabric())
    assert len(want) == 7
    for index, value in enumerate(want):
        for rank in ranks:
            torch.testing.assert_close(rank["heads"][index], value, rtol=0, atol=1e-6)


def test_only_the_first_process_writes(ranks):
    assert [rank["written"] for rank in ranks] == [4 * len(two_processes.CASES), 0]


def test_processes_with_unequal_memory_agree_on_the_groups(ranks):
    assert [rank["groups"] for rank in ranks] == [3, 3]
