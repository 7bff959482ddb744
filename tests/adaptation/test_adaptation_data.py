"""Which samples a step sees, and that keeping them changes nothing."""

import numpy as np
import pytest
import torch
from toy_engine import Rows

from fusion_plugins.adaptation import (
    EncodedDataset,
    JointSchedule,
    KeptSamples,
    SampleOrder,
    SequentialSchedule,
    StreamedSamples,
    TaskSamples,
)
from fusion_plugins.common.order import _permutation

# What seed 0 gives, written down once.
FIRST_BATCH = [2, 4, 6, 8]
SECOND_ROUND = [1, 2, 0, 3]


def stored_images(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 2, 3), dtype=torch.uint8, generator=generator)


def decode(stored: torch.Tensor) -> torch.Tensor:
    return stored.float() / 255


def samples_of(values=None, *, seed=0, batch_size=6, task="a", **share) -> TaskSamples:
    rows = Rows(stored_images(50) if values is None else values)
    order = SampleOrder(seed, batch_size)
    return TaskSamples(task, rows, order, decode, "cpu", **share)


def source(values=None, *, draws=(), monitored=0, workers=0, **options) -> KeptSamples:
    data = samples_of(values, **options)
    return KeptSamples(data, data.visited(draws, monitored), workers=workers)


def test_a_batch_depends_on_nothing_but_its_number():
    forward = [SampleOrder(0, 7).batch("a", 20, d).tolist() for d in range(12)]
    _permutation.cache_clear()
    order = SampleOrder(0, 7)
    backward = [order.batch("a", 20, d).tolist() for d in reversed(range(12))]
    assert backward[::-1] == forward
    order.batch("b", 20, 3)  # another task in between
    assert order.batch("a", 20, 5).tolist() == forward[5]


@pytest.mark.parametrize("samples, batch_size", [(20, 7), (5, 16), (16, 4), (1, 3)])
def test_every_epoch_visits_each_sample_once(samples, batch_size):
    order = SampleOrder(3, batch_size)
    draws = -(-4 * samples // batch_size)
    visited = np.concatenate([order.batch("a", samples, d) for d in range(draws)])
    for epoch in range(4):
        part = visited[epoch * samples : (epoch + 1) * samples]
        assert sorted(part) == list(range(samples))
    if samples > 4:
        assert visited[:samples].tolist() != visited[samples : 2 * samples].tolist()


def test_seeds_and_tasks_have_orders_of_their_own():
    orders = {
        tuple(SampleOrder(seed, 30).batch(task, 30, 0))
        for seed in (0, 1)
        for task in ("a", "b")
    }
    assert len(orders) == 4
    with_others = SampleOrder(0, 30).subset("a", 30, 10)
    assert SampleOrder(0, 30).subset("a", 30, 10).tolist() == with_others.tolist()
    assert SampleOrder(0, 30).subset("a", 5, 10).size == 5


def test_the_order_is_the_same_on_every_machine():
    """A stored run continues elsewhere: the numbers must never change."""
    assert SampleOrder(0, 4).batch("digits", 10, 0).tolist() == FIRST_BATCH
    assert SampleOrder(0, 4).rounds(4, 1).tolist() == SECOND_ROUND


def test_all_draws_of_a_task_are_seen_whatever_the_order_of_tasks():
    one = {t: source(task=t).batch([4]).samples.tolist() for t in ("a", "b", "c")}
    other = {t: source(task=t).batch([4]).samples.tolist() for t in ("c", "a", "b")}
    assert one == other and one["a"] != one["b"]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("batch_size", [6, 7])
def test_the_shares_of_all_processes_make_up_the_batch(world, batch_size):
    whole = source(batch_size=batch_size).batch([0, 1])
    parts = [
        source(batch_size=batch_size, rank=rank, world=world).batch([0, 1])
        for rank in range(world)
    ]
    for draw in (0, 1):
        want = sorted(whole.samples[whole.draws == draw].tolist())
        shares = [part.samples[part.draws == draw].tolist() for part in parts]
        assert sorted(sum(shares, [])) == want
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("workers", [0, 1])
def test_streamed_samples_are_the_kept_ones(workers):
    draws = [[0, 1], [2, 3], [4, 5], [2, 3], [9]]  # on, back, and ahead
    kept, data = source(draws=range(10), monitored=8), samples_of()
    other = StreamedSamples(data, data.visited(range(10), 8), workers)
    assert np.array_equal(kept.visited, other.visited) and kept.count == 50
    for wanted in draws:
        a, b = kept.batch(wanted), other.batch(wanted)
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.samples, b.samples) and torch.equal(a.draws, b.draws)
    assert torch.equal(kept.monitored(8), other.monitored(8))
    assert torch.equal(kept.batch([3]).inputs, decode(data.dataset.values[a_draw(3)]))


def a_draw(number: int) -> torch.Tensor:
    return torch.from_numpy(SampleOrder(0, 6).batch("a", 50, number))


def test_each_visited_sample_is_encoded_exactly_once():
    kept = source(draws=range(3), monitored=4)
    data = kept.data
    visited = set(torch.cat([a_draw(d) for d in range(3)]).tolist())
    visited |= set(SampleOrder(0, 6).subset("a", 50, 4).tolist())
    assert sorted(data.dataset.reads) == sorted(visited) and len(visited) < 50
    for _ in range(2):
        kept.batch([0, 1, 2])
        kept.monitored(4)
    assert len(data.dataset.reads) == len(visited)
    later = kept.batch([7])  # not prepared: encoded when asked for
    assert len(data.dataset.reads) > len(visited)
    assert torch.equal(later.inputs, decode(data.dataset.values[a_draw(7)]))


def test_large_caches_filled_by_workers_are_the_same():
    values = stored_images(300)
    alone, helped = (source(values, draws=range(50), workers=n) for n in (0, 1))
    assert len(alone.data.dataset.reads) == 300 and helped.data.dataset.reads == []
    assert torch.equal(alone.batch(range(50)).inputs, helped.batch(range(50)).inputs)


def names_of(values, draws=range(3)) -> tuple[str, str]:
    """Fingerprint and contents of kept samples; streamed ones agree in the first."""
    data = samples_of(values)
    visited = data.visited(draws, 4)
    kept, streamed = KeptSamples(data, visited), StreamedSamples(data, visited)
    assert kept.fingerprint() == streamed.fingerprint()
    assert streamed.contents() == {}  # nothing tells without encoding
    return kept.fingerprint(), kept.contents()["all_samples"]


def test_the_fingerprints_are_those_of_what_the_run_sees():
    values = stored_images(50)
    other, unseen = values.clone(), values.clone()
    visited = samples_of(values).visited(range(3), 4)
    other[visited[0], 0, 0] += 1
    unseen[sorted(set(range(50)) - set(visited.tolist()))] += 1
    assert names_of(values) == names_of(unseen)
    for changed in (names_of(other), names_of(values, range(4))):
        assert all(
            one != two for one, two in zip(names_of(values), changed, strict=True)
        )


def test_an_encoded_dataset_shows_the_chosen_samples_without_labels():
    raw = [(torch.tensor([float(i)]), f"label {i}") for i in range(5)]
    chosen = EncodedDataset(raw, lambda sample: sample[0] * 2, np.array([1, 4]))
    assert len(chosen) == 2 and [chosen[i].item() for i in (0, 1)] == [2.0, 8.0]


def test_an_empty_dataset_is_refused_by_name():
    with pytest.raises(ValueError, match="The dataset of task 'a' is empty.*fraction"):
        source(torch.empty(0, 2, 3))


def test_a_batch_smaller_than_the_processes_is_refused():
    with pytest.raises(ValueError, match="batch_size is 2, but 3 processes share each"):
        source(batch_size=2, rank=0, world=3)


def test_joint_steps_see_every_task_and_never_a_draw_twice():
    schedule = JointSchedule(2, 3, batches_per_task=2)
    steps = [schedule.draws(step) for step in range(schedule.steps)]
    assert steps[1] == [(0, [2, 3]), (1, [2, 3])]
    assert [d for step in steps for t, draws in step if t == 1 for d in draws] == [
        0, 1, 2, 3, 4, 5,
    ]  # fmt: skip


def test_sequential_rounds_see_every_task_once_in_changing_order():
    schedule = SequentialSchedule(4, 6, SampleOrder(0, 16))
    assert schedule.steps == 24
    orders = []
    for number in range(6):
        steps = [schedule.draws(4 * number + place) for place in range(4)]
        assert all(draws == [number] for ((_, draws),) in steps)
        orders.append([task for ((task, _),) in steps])
        assert sorted(orders[-1]) == [0, 1, 2, 3]
    assert len({tuple(order) for order in orders}) > 2
