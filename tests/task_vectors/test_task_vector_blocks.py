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
def test_smaller_blocks_merge_the_same_to_the_bit(monkeypatch, tasks, row_size, by_row):
    torch.manual_seed(tasks)
    base = nn.Linear(row_size, 93, bias=False)
    experts = {f"task {n}": nn.Linear(row_size, 93, bias=False) for n in range(tasks)}
    task_vectors = TaskVectors.from_modules(base, experts)
    weights = torch.randn(tasks, 93) if by_row else torch.randn(tasks)

    def merged(entries: int) -> tuple[torch.Tensor, int]:
        monkeypatch.setattr(blocks, "_OF_ALL", entries)
        parts = {}

        def merge(found) -> None:
            parts.update({b.rows.start: merge_block(b, weights) for b in found})

        task_vectors.for_each_key(merge)
        return torch.cat([parts[start] for start in sorted(parts)]), len(parts)

    (want, whole), (got, many) = merged(2**22), merged(500 * (tasks + 1))
    assert whole == 1 and (many > 10 if row_size % 64 == 0 else many == 1)
    assert torch.equal(got, want)


@pytest.mark.parametrize("of_expert", [torch.bfloat16, torch.float32, torch.float64])
def test_models_in_several_dtypes_are_read_as_they_are(tmp_path, of_expert):
    torch.manual_seed(0)
    values = {name: torch.randn(6, 5) for name in ("base", "one", "two")}
    dtypes = {"base": torch.bfloat16, "one": of_expert, "two": torch.float16}
    values = {name: tensor.to(dtypes[name]) for name, tensor in values.items()}
    for name, tensor in values.items():
        save_file({"weight": tensor}, tmp_path / f"{name}.safetensors")
    base, one, two = (
        SafetensorsCheckpoint(tmp_path / f"{n}.safetensors", n) for n in values
    )
    (block,) = TaskVectors(base, {"one": one, "two": two}).blocks()
    wide = torch.promote_types(torch.float32, of_expert)
    want = values["base"].to(wide)
    assert torch.equal(block.base, want)
    for found, name in zip(block.task_vectors, ("one", "two"), strict=True):
        assert torch.equal(found, values[name].to(wide) - want)
