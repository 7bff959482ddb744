"""The rows that are read together: which, and that no bit depends on how many."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fusion_plugins.task_vectors import SafetensorsCheckpoint, TaskVectors, blocks
from fusion_plugins.task_vectors.blocks import row_slices, spread_slices
from fusion_plugins.task_vectors.merge import merge_block


def test_rows_are_walked_once_and_in_order():
    rows = list(row_slices((10, 3), entries=12))
    assert rows == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert list(row_slices((10, 3), 12, start=1, every=2)) == [slice(4, 8)]
    assert list(row_slices((10, 30), entries=12)) == [
        slice(n, n + 1) for n in range(10)
    ]
    assert list(row_slices((7,), 2)) == list(row_slices((), 2)) == [slice(0, 1)]
    assert list(row_slices((0, 3), 2)) == [slice(0, 0)]


def test_spread_slices_have_equal_distances_over_all_tensors():
    shapes = {"a": (10, 4), "b": (4,), "c": (3, 4), "d": (9, 4)}
    numbered = [(key, s) for key, shape in shapes.items() for s in row_slices(shape, 8)]
    assert len(numbered) == 13
    for every in (1, 2, 3, 5, 20):
        got = spread_slices(shapes, 8, every)
        assert [(k, s) for k, part in got.items() for s in part] == numbered[::every]


@pytest.mark.parametrize("tasks", [1, 2, 3, 8, 20])
@pytest.mark.parametrize("row_size", [64, 192, 60, 7])
@pytest.mark.parametrize("by_row", [False, True], ids=["tensor", "row"])
def test_blocks_that_stay_in_the_cache_merge_the_same_to_the_bit(
    monkeypatch, tasks, row_size, by_row
):
    torch.manual_seed(tasks)
    base = nn.Linear(row_size, 93, bias=False)
    experts = {f"task {n}": nn.Linear(row_size, 93, bias=False) for n in range(tasks)}
    task_vectors = TaskVectors.from_modules(base, experts)
    weights = torch.randn(tasks, 93) if by_row else torch.randn(tasks)

    def merged(cached: int) -> tuple[torch.Tensor, int]:
        monkeypatch.setattr(blocks, "_CACHED", cached)
        parts = {}

        def merge(found) -> None:
            parts.update({b.rows.start: merge_block(b, weights) for b in found})

        task_vectors.for_each_key(merge, rows_of=task_vectors.cached_rows)
        return torch.cat([parts[start] for start in sorted(parts)]), len(parts)

    (want, whole), (got, many) = merged(2**22), merged(500 * (tasks + 1))
    assert whole == 1 and (many > 10 if row_size % 64 == 0 else many == 1)
    assert torch.equal(got, want)


def test_what_is_larger_than_the_room_for_reading_is_read_too(tmp_path):
    values = torch.arange(1.0, 2**20 + 10).bfloat16()
    save_file({"a": values, "b": values[:5].clone()}, tmp_path / "model.safetensors")
    checkpoint = SafetensorsCheckpoint(tmp_path, "model")
    for name, want in {"a": values, "b": values[:5]}.items():
        out = torch.empty(len(want))
        checkpoint.reader(name)(out, None)
        assert torch.equal(out, want.float())
