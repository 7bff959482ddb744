"""Fingerprints change with every content that decides a result, and with nothing else."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from fusion_plugins.common.identity import (
    content_fingerprint,
    data_fingerprint,
    file_fingerprint,
    folder_fingerprint,
)

IMAGE = Image.new("L", (2, 2), 7)
DIFFERENT = [
    None,
    True,
    1,
    1.0,
    "1",
    b"1",
    [],
    [[]],
    {},
    ["ab", "c"],
    ["a", "bc"],
    {"a": 1},
    {"a": 2},
    torch.tensor([1, 2]),
    torch.tensor([[1, 2]]),
    torch.tensor([1, 2], dtype=torch.int32),
    torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
    torch.tensor([1.0, 2.5], dtype=torch.bfloat16),
    torch.zeros(0),
    torch.tensor(1.0),
    np.array([1, 2]),
    np.array([1, 2], dtype=np.int8),
    IMAGE,
    IMAGE.convert("RGB"),
    Image.new("L", (2, 2), 8),
    Image.new("L", (4, 1), 7),
]


def test_no_two_contents_look_alike():
    found = [content_fingerprint(value) for value in DIFFERENT]
    assert len(set(found)) == len(DIFFERENT)
    assert {len(text) for text in found} == {32}
    assert found == [content_fingerprint(value) for value in DIFFERENT]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (torch.arange(6).reshape(2, 3).T, torch.arange(6).reshape(2, 3).T.contiguous()),
        ([1, "x"], (1, "x")),
        (np.int64(3), 3),
    ],
)
def test_equal_contents_look_alike(one, other):
    assert content_fingerprint(one) == content_fingerprint(other)


def test_what_has_no_fingerprint_is_refused():
    with pytest.raises(TypeError, match="a fingerprint of object is not known"):
        content_fingerprint([object()])


def test_samples_count_in_their_order():
    samples = [{"image": IMAGE, "label": label} for label in range(4)]
    some = data_fingerprint(samples, [0, 2])
    assert some == data_fingerprint(samples[:3], [0, 2])
    assert some != data_fingerprint(samples, [2, 0])
    samples[2] = {"image": IMAGE, "label": 9}
    assert some != data_fingerprint(samples, [0, 2])


def test_a_file_written_anew_in_place_is_read_again(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"one")
    before = file_fingerprint(path)
    os.utime(path, ns=(0, 0))
    assert file_fingerprint(path) == before
    path.write_bytes(b"two")
    assert file_fingerprint(path) != before


def test_a_folder_is_its_files_names_and_contents(tmp_path):
    for name in ("a/model.bin", "a/config.json", ".cache/stamp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    before = folder_fingerprint(tmp_path)
    (tmp_path / ".cache/stamp").write_text("hidden")
    assert folder_fingerprint(tmp_path) == before
    (tmp_path / "a/model.bin").rename(tmp_path / "a/other.bin")
    renamed = folder_fingerprint(tmp_path)
    (tmp_path / "a/other.bin").write_text("b/model.bin")
    assert len({before, renamed, folder_fingerprint(tmp_path)}) == 3
