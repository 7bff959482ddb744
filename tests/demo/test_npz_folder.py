import dataclasses
import json
import zipfile

import numpy as np
import pytest

from fusion_plugins.demo import (
    DemoRecipe,
    build_pool,
    demo_modelpool,
    demo_taskpool,
    read_npz_folder,
)

RECIPE = DemoRecipe(
    width=16,
    depth=1,
    heads=2,
    text_width=16,
    text_depth=1,
    embedding=16,
    pretrain_steps=2,
    expert_steps=2,
    batch_size=8,
)

DATA = ("x_train", "y_train", "x_test", "y_test")


def arrays(shape=(28, 28), count=12, **changes):
    rng = np.random.default_rng(0)
    made = {
        "x_train": rng.integers(0, 256, (count, *shape), dtype=np.uint8),
        "y_train": np.arange(count) % 3,
        "x_test": rng.integers(0, 256, (count, *shape), dtype=np.uint8),
        "y_test": np.arange(count) % 3,
        "class_names": np.array(["cat", "dog", "cow"]),
    }
    return {key: value for key, value in (made | changes).items() if value is not None}


def save(folder, name="pets", **content):
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"{name}.npz", **(content or arrays()))
    return folder


def test_grey_and_colour_of_any_size_become_one_pool(tmp_path):
    folder = save(tmp_path / "in", "grey", **arrays((28, 28)))
    save(folder, "colour", **arrays((40, 50, 3)))
    save(folder, "one-channel", **arrays((32, 32, 1)))
    other = save(tmp_path / "other", "more", **arrays((8, 8)))
    tasks = read_npz_folder(folder, 32)
    assert [task.name for task in tasks] == ["colour", "grey", "one-channel"]
    assert {task.x_train.shape for task in tasks} == {(12, 32, 32, 3)}
    recipe = dataclasses.replace(RECIPE, tasks=tuple(task.name for task in tasks))
    root = build_pool(
        recipe, lambda: tasks, tmp_path / "out", lambda: read_npz_folder(other, 32)
    )
    description = json.loads((root / "pool.json").read_text())
    assert list(description["tasks"]) == ["colour", "grey", "one-channel"]
    assert description["pretraining_only"] == ["more"]
    report = demo_taskpool(root).evaluate(demo_modelpool(root).load_model("grey"))
    for name in recipe.tasks:
        assert 0 <= report[name]["accuracy"] <= 1


def test_chosen_tasks_keep_the_users_order(tmp_path):
    folder = save(tmp_path / "in", "a")
    save(folder, "b")
    assert [t.name for t in read_npz_folder(folder, 16, ["b", "a"])] == ["b", "a"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, r"missing \['y_test'\]; needed"),
        ({"x_train": np.zeros((12, 8, 8))}, "x_train must be uint8 .* got float64"),
        (
            {"x_test": np.zeros((12, 8), np.uint8)},
            r"x_test must be .* shape \(N, H, W\)",
        ),
        ({"x_test": np.zeros((12, 8, 8, 4), np.uint8)}, r"of shape \(12, 8, 8, 4\)"),
        (
            {"x_train": np.zeros((0, 8, 8), np.uint8)},
            r"x_train .* uint8 of shape \(0, 8, 8\)",
        ),
        ({"y_train": np.zeros(5, int)}, r"y_train must be .*\(12,\).* shape \(5,\)"),
        ({"y_train": np.zeros(12)}, "y_train must be integers .* got float64"),
        ({"y_train": np.arange(12)}, "labels must be 0 to 2"),
        ({"y_test": np.arange(12) - 10}, "runs from -10 to 1"),
        ({"class_names": np.arange(3)}, "class_names must be a list of texts"),
        ({"class_names": np.array(["a", " ", "b"])}, "class 1 has an empty name"),
        (
            {"class_names": np.array(["a", "b", None], object)},
            "cannot read class_names .it holds pickled objects",
        ),
    ],
)
def test_bad_arrays_say_what_is_wrong(tmp_path, changes, message):
    folder = save(tmp_path / "in", **arrays(**changes))
    with pytest.raises(ValueError, match=message) as caught:
        read_npz_folder(folder, 32)
    assert "pets.npz" in str(caught.value)


def test_bad_folders_and_files_say_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        read_npz_folder(tmp_path / "none", 32)
    with pytest.raises(ValueError, match="has no .npz files"):
        read_npz_folder(tmp_path, 32)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match="text.npz: not a .npz file"):
        read_npz_folder(tmp_path, 32)
    folder = save(tmp_path / "in", "two words")
    with pytest.raises(ValueError, match="becomes the task's name"):
        read_npz_folder(folder, 32)
    with pytest.raises(ValueError, match=r"no task \['a'\] in .*'two words'"):
        read_npz_folder(folder, 32, ["a"])


def damaged(folder, change):
    """One member, ``y_train.npy``, has other bytes; the archive itself is whole."""
    file = save(folder) / "pets.npz"
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    old = members.pop("y_train.npy")
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr("y_train.npy", change(old))
    return folder


@pytest.mark.parametrize(
    "change",
    [
        lambda old: old[:-8],  # cut in the data
        lambda old: old[:20],  # cut in the header
        lambda old: old.replace(b"'shape': (12,)", b"'shape': (1x,)"),
        lambda old: old.replace(b"'shape': (12,)", b"'shape': (12, "),
        lambda old: old.replace(b"}", b" "),
        lambda old: old.replace(b"(12,), }   ", b"(9**9**9,)}"),
        lambda old: old.replace(b"(12,), }         ", b"(99999999999999),}"),
        lambda old: b"\x93NUMPY\x07\x00" + old[8:],  # a version there is not
    ],
)
def test_a_damaged_member_is_named_with_the_fix(tmp_path, change):
    folder = damaged(tmp_path / "in", change)
    with pytest.raises(ValueError, match=r"pets.npz: cannot read y_train .*np.savez"):
        read_npz_folder(folder, 32)


@pytest.mark.parametrize("content", [b"", b"label,image"])
def test_a_member_that_is_no_array_is_named(tmp_path, content):
    folder = damaged(tmp_path / "in", lambda old: content)
    with pytest.raises(ValueError, match="y_train is no array; save it with np.savez"):
        read_npz_folder(folder, 32)


@pytest.mark.parametrize("cut", [30, 400, -4])
def test_a_cut_file_is_named(tmp_path, cut):
    file = save(tmp_path / "in") / "pets.npz"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"pets.npz: (not a .npz file|cannot be read)"):
        read_npz_folder(tmp_path / "in", 32)


def test_flipped_bytes_are_named(tmp_path):
    """Wherever a byte is wrong: refused by name, or the images are the same."""
    file = save(tmp_path / "in") / "pets.npz"
    whole = file.read_bytes()
    want = read_npz_folder(tmp_path / "in", 32)[0]
    refused = 0
    for at in range(0, len(whole), 97):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            (task,) = read_npz_folder(tmp_path / "in", 32)
        except ValueError as error:
            assert "pets.npz: " in str(error)
            refused += 1
        else:
            assert all(np.array_equal(getattr(task, k), getattr(want, k)) for k in DATA)
    assert refused > 50


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.uint8(3)}, "x_train must be uint8"),
        ({"y_train": np.int64(3)}, r"y_train must be integers of shape \(12,\)"),
        ({"y_train": np.arange(12).astype("M8[s]")}, "y_train must be integers"),
        ({"y_train": np.zeros(12, bool)}, "y_train must be integers .* got bool"),
        ({"y_train": np.full(12, 2**63, np.uint64)}, "y_train runs from 92"),
        ({"class_names": np.array("cat")}, "class_names must be a list of texts"),
        (
            {"class_names": np.array([b"a", b"b"])},
            "class_names must be a list of texts",
        ),
        ({"x_train": np.zeros(12, [("a", "u1")])}, "x_train must be uint8"),
    ],
)
def test_odd_members_say_what_is_wrong(tmp_path, changes, message):
    folder = save(tmp_path / "in", **arrays(**changes))
    with pytest.raises(ValueError, match=f"pets.npz: {message}"):
        read_npz_folder(folder, 32)


def test_one_training_image_is_too_few(tmp_path):
    one = arrays(x_train=np.zeros((1, 8, 8), np.uint8), y_train=np.zeros(1, np.int64))
    folder = save(tmp_path / "in", **one)
    with pytest.raises(ValueError, match="x_train needs at least 2 images"):
        read_npz_folder(folder, 32)


def test_a_prompt_too_long_for_clip_is_refused(tmp_path):
    names = np.array(["cat", "dog", "x" * 80])
    folder = save(tmp_path / "in", **arrays(class_names=names))
    recipe = dataclasses.replace(RECIPE, tasks=("pets",))
    with pytest.raises(ValueError, match="at most 77 fit; shorten the class name"):
        build_pool(recipe, lambda: read_npz_folder(folder, 32), tmp_path / "out")
    assert not (tmp_path / "out").exists()
