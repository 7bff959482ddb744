"""What the shipped recordings exercise, so that replaying them proves something."""

import literal
import pytest
import torch
from recordings import OLD_SUMS, SHIPPED, TOLERANCE, Recording, load
from test_tinting import SAMPLING, replay

NAMES = {
    *("adamerging_layer_wise", "adamerging_layer_wise_pp"),
    *("adamerging_task_wise", "adamerging_task_wise_pp"),
    *("awd_global", "awd_row", "tinting", "tinting_pp"),
}


def test_all_of_them_are_here():
    assert {path.stem for path in SHIPPED.glob("*.npz")} == NAMES


@pytest.mark.parametrize("name", sorted(n for n in NAMES if n.startswith("adam")))
def test_coefficients_moved_far(name):
    moved = load(name, SHIPPED)["final_lambdas"] - literal.INIT
    assert moved.abs().max() > 5e-3


@pytest.mark.parametrize("name", SAMPLING)
def test_the_clamps_zero_gradient_takes_part_and_orders_change(name):
    recording = Recording.load(name, SHIPPED)
    learned = recording.arrays["final_lambdas"]
    assert learned.min() < 0 or learned.max() > 1
    rounds = recording.arrays["order"].view(-1, recording.tasks)
    assert len(rounds.unique(dim=0)) > 3
    for t in range(recording.tasks):
        start, final = recording.head(t), recording.head(t, "final_head")
        assert (final.weight - start.weight).abs().max() > 0.05


def test_sampling_is_what_tells_the_two_recordings_apart():
    """Without its sampling the second file is not replayed."""
    recording = Recording.load("tinting_pp", SHIPPED)
    got = replay(recording, "none").coefficients.raw.detach()
    want = recording.arrays["final_lambdas"].t()
    assert (got - want).abs().max() > 1e-3


def test_one_row_ends_on_a_kink_where_the_precisions_part():
    rows = load("awd_row", SHIPPED)
    in_float32, in_float64 = (
        literal.awd_row(rows, "row", d)[0] for d in (torch.float32, torch.float64)
    )
    want = rows["common_row"]
    parted = (want - in_float64).abs().amax(dim=1)
    assert (parted > TOLERANCE).tolist() == [False] * 4 + [True, False]
    assert parted.max() <= 1e-3  # steps across it
    same = parted <= TOLERANCE if OLD_SUMS else slice(None)
    torch.testing.assert_close(in_float32[same], want[same], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("kind", "tolerance"), [("row", 1e-5), ("none", 2e-7)])
def test_the_last_step_still_changes_the_cosine(kind, tolerance):
    """So that the recorded one, before that step, is not the one after it."""
    rows = load("awd_row", SHIPPED)
    further = {**rows, "iters": rows["iters"] + 1}
    _, (_, after) = literal.awd_row(further, kind, torch.float64)
    assert (after - rows[f"cos_{kind}"][1]).abs() > tolerance
