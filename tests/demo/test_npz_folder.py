import dataclasses
import json

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
            r"x_test must have shape \(N, H, W\)",
        ),
        ({"x_test": np.zeros((12, 8, 8, 4), np.uint8)}, r"got \(12, 8, 8, 4\)"),
        ({"x_train": np.zeros((0, 8, 8), np.uint8)}, "x_train holds no images"),
        ({"y_train": np.zeros(5, int)}, r"shape \(5,\), expected \(12,\)"),
        ({"y_train": np.zeros(12)}, "y_train must be integers, got float64"),
        ({"y_train": np.arange(12)}, "labels must be 0 to 2"),
        ({"y_test": np.arange(12) - 10}, "runs from -10 to 1"),
        ({"class_names": np.arange(3)}, "class_names must be a list of texts"),
        ({"class_names": np.array(["a", "A", "b"])}, r"class_names repeat: \['a'\]"),
        ({"class_names": np.array(["a", " ", "b"])}, "holds an empty name"),
        (
            {"class_names": np.array(["a", "b", None], object)},
            "class_names holds pickled objects",
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
