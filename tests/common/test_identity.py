"""Fingerprints change with what they name, and with nothing else."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from fusion_plugins.common.identity import (
    data_fingerprint,
    file_fingerprint,
    fingerprint,
    folder_fingerprint,
)

PICTURE = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
OTHER = Image.fromarray(np.arange(1, 13, dtype=np.uint8).reshape(2, 2, 3))


def recoloured(picture: Image.Image) -> Image.Image:
    picture.putpalette(bytes(reversed(picture.getpalette())))
    return picture


@pytest.mark.parametrize(
    "one, other",
    [
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])),
        (torch.zeros(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)),
        (np.zeros(2), np.ones(2)),
        (PICTURE, OTHER),
        (PICTURE.convert("P"), recoloured(PICTURE.convert("P"))),
        (np.array(["a"] * 3000, object), np.array(["a"] * 2999 + ["b"], object)),
        ("ab", ["a", "b"]),
        (["ab", "c"], ["a", "bc"]),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        (1, "1"),
        (1, True),
        (None, "None"),
        (b"ab", "ab"),
    ],
)
def test_other_contents_have_another_name(one, other):
    assert fingerprint(one) != fingerprint(other)


def test_equal_contents_have_one_name():
    one = {"x": torch.arange(6).view(2, 3).t(), "y": [PICTURE, "text", 3]}
    other = {
        "y": [PICTURE.copy(), "text", 3],
        "x": torch.tensor([[0, 3], [1, 4], [2, 5]]),
    }
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint({"a", "b"}) == fingerprint({"b", "a"})


def test_data_counts_only_the_chosen_samples():
    rows = [torch.tensor([float(i)]) for i in range(5)]
    changed = [*rows[:4], torch.tensor([9.0])]
    assert data_fingerprint(rows) != data_fingerprint(changed)
    assert data_fingerprint(rows, [0, 2]) == data_fingerprint(changed, [0, 2])
    assert data_fingerprint(rows, [0, 2]) != data_fingerprint(rows, [2, 0])


def test_a_file_rewritten_in_place_has_another_name(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    first = file_fingerprint(path)
    folder = folder_fingerprint(tmp_path)
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 2))
    assert file_fingerprint(path) != first
    assert folder_fingerprint(tmp_path) != folder
    (tmp_path / ".hidden").write_text("x")
    again = folder_fingerprint(tmp_path)
    path.rename(tmp_path / "other")
    assert folder_fingerprint(tmp_path) != again


def test_what_links_to_folders_lead_to_counts(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "one").write_text("1")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "link").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "back").symlink_to(tmp_path / "model")
    before = folder_fingerprint(tmp_path / "model")
    assert folder_fingerprint(tmp_path / "model") == before
    (tmp_path / "data" / "one").write_text("other")
    assert folder_fingerprint(tmp_path / "model") != before
