import dataclasses
import sys

import numpy as np
import pytest

from fusion_plugins.demo import DemoRecipe, builtin, builtin_tasks
from fusion_plugins.demo.datasets import train_and_val
from fusion_plugins.demo.recipe import BUILTIN_TASKS

SMALL = DemoRecipe(train_images=24, test_images=12)


@pytest.fixture(scope="module")
def drawn():
    return builtin_tasks(SMALL)


def test_generated_data_depends_on_the_seed_alone(drawn):
    first, again = drawn, builtin_tasks(SMALL)
    other = builtin_tasks(dataclasses.replace(SMALL, seed=1))
    assert [task.name for task in first] == list(BUILTIN_TASKS)
    for a, b, c in zip(first, again, other, strict=True):
        for key in ("x_train", "y_train", "x_test", "y_test"):
            assert getattr(a, key).tobytes() == getattr(b, key).tobytes(), a.name
        assert a.x_test.tobytes() != c.x_test.tobytes(), a.name


def test_a_tasks_data_do_not_depend_on_the_other_tasks(drawn):
    alone = builtin_tasks(dataclasses.replace(SMALL, tasks=("letters",)))[0]
    among = next(task for task in drawn if task.name == "letters")
    np.testing.assert_array_equal(alone.x_train, among.x_train)


def test_generated_images_have_the_promised_form(drawn):
    for task in drawn:
        for x, y in ((task.x_train, task.y_train), (task.x_test, task.y_test)):
            assert x.dtype == np.uint8 and x.shape[1:] == (32, 32, 3), task.name
            assert y.dtype == np.int64 and len(x) == len(y), task.name
            assert y.min() >= 0 and y.max() < len(task.class_names), task.name
        assert len(set(task.class_names)) == len(task.class_names)
        assert all(template.count("{}") == 1 for template in task.templates)


def test_digits_are_never_in_both_splits():
    recipe = DemoRecipe(tasks=("digits",), test_images=500)
    task = builtin_tasks(recipe)[0]
    assert (len(task.x_train), len(task.x_test)) == (1297, 500)


def test_validation_is_a_fixed_tenth_of_the_training_images():
    train, val = train_and_val(100)
    assert (len(train), len(val)) == (90, 10)
    assert sorted([*train, *val]) == list(range(100))
    np.testing.assert_array_equal(val, train_and_val(100)[1])


def test_a_changed_recipe_has_another_hash():
    hashes = {DemoRecipe().hash()}
    assert DemoRecipe().hash() in hashes
    for field in dataclasses.fields(DemoRecipe):
        value = getattr(DemoRecipe(), field.name)
        changed = {
            "tasks": ("digits",),
            "image_size": 64,
            "patch_size": 4,
            "width": 64,
            "text_width": 32,
            "heads": 2,
            "pretrain_negatives": 0.5,
        }.get(field.name, value + 1 if not isinstance(value, tuple) else None)
        hashes.add(dataclasses.replace(DemoRecipe(), **{field.name: changed}).hash())
    assert len(hashes) == 1 + len(dataclasses.fields(DemoRecipe))


@pytest.mark.parametrize(
    ("task", "module", "extra"),
    [("digits", "sklearn", "demo"), ("letters", "matplotlib", "report")],
)
def test_a_missing_package_names_the_extra_before_anything_is_drawn(
    monkeypatch, task, module, extra
):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(builtin, "_drawn", None)
    message = (
        rf"^The task {task} needs {module}: pip install 'fusion-plugins\[{extra}\]'\.$"
    )
    with pytest.raises(ModuleNotFoundError, match=message):
        builtin_tasks(dataclasses.replace(SMALL, tasks=("shapes", task)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ()}, r"needs tasks, each once; got \[\]"),
        ({"tasks": ("digits", "digits")}, "each once"),
        ({"width": 0}, "width is 0, expected a whole number >= 1"),
        ({"width": 16.0}, "width is 16.0, expected a whole number >= 1"),
        ({"expert_steps": -1}, "expert_steps is -1, expected a whole"),
        ({"seed": -1}, "seed is -1, expected a whole number >= 0"),
        (
            {"seed": 2**32},
            r"seed is 4294967296, expected a whole number >= 0 and < 2\^32",
        ),
        ({"seed": "0"}, "seed is '0', expected a whole number"),
        ({"seed": None}, "seed is None, expected a whole number"),
        ({"expert_lr": float("nan")}, "expert_lr is nan, expected a number"),
        ({"pretrain_negatives": 1.5}, r"1.5, expected a number in \[0, 1\]"),
        ({"train_images": 1}, "train_images is 1, expected a whole number >= 2"),
        ({"width": 30}, "must be multiples of the 4 attention heads"),
        ({"patch_size": 5}, "image_size 32 is no multiple of patch_size 5"),
    ],
)
def test_bad_recipes_say_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        DemoRecipe(**changes)


def test_unknown_builtin_task_names_those_available():
    with pytest.raises(ValueError, match=r"\['cats'\]; available: \['digits'"):
        builtin_tasks(DemoRecipe(tasks=("cats",)))
