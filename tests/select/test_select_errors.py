"""What cannot be selected is refused in one line, before any model is read."""

from types import SimpleNamespace

import pytest
from fusion_bench.tasks.clip_classification import get_num_classes
from torch import nn

from fusion_plugins import (
    AdaMergingAlgorithm,
    AWDAlgorithm,
    SelectAlgorithm,
    TintingAlgorithm,
)
from fusion_plugins.pools.clip_tasks import registered_tasks
from fusion_plugins.selection.pool import require_classes

TASK_ARITHMETIC = {"_target_": "fusion_bench.method.TaskArithmeticAlgorithm"}
WUDI = {"_target_": "fusion_bench.method.WUDIMerging", "iter_num": 3}
AWD = {"_target_": "fusion_plugins.AWDAlgorithm", "alpha": 0.1}


@pytest.fixture
def unread(tiny_modelpool, monkeypatch):
    """A pool without models that can be read."""

    def load_model(self, name, *args, **kwargs):
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(type(tiny_modelpool), "load_model", load_model)
    return tiny_modelpool


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"data": "val"}, ValueError, "pool lists no val_datasets for"),
        ({"score": "val"}, ValueError, "pool lists no val_datasets for"),
        (
            {"base": AWD, "over": {"alpha": [0.1, -1]}},
            ValueError,
            r"alpha is -1, expected a number in \[0, inf\)",
        ),
    ],
)
def test_before_any_model_is_read(unread, options, error, message):
    unread._val_datasets = {}
    with pytest.raises(error, match=message) as caught:
        SelectAlgorithm(**options).run(unread)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", ["cat", None, -1, [0, 1]])
def test_labels_that_are_no_classes_are_said_before_any_model_is_read(unread, label):
    samples = unread.load_test_dataset("digits")
    sets = {task: unread.load_test_dataset(task) for task in unread.model_names}
    sets["digits"] = [{**samples[n], "label": label} for n in range(9)]
    unread._test_datasets = sets
    with pytest.raises(
        ValueError, match="Task 'digits', sample 0: its label is"
    ) as said:
        SelectAlgorithm(score="oracle").run(unread)
    assert "\n" not in str(said.value)


def test_a_pool_without_experts(unread):
    unread._models = {"_pretrained_": unread._models["_pretrained_"]}
    with pytest.raises(ValueError, match="There is no expert to merge"):
        SelectAlgorithm().run(unread)


def test_a_text_that_the_tower_cannot_take_is_named(tiny_modelpool):
    long = {"classnames": ["a", "b"], "templates": ["a photo of {} " + "and " * 100]}
    with pytest.raises(ValueError, match="The text 'a photo of a and and .* tokens"):
        SelectAlgorithm(tasks={"digits": long}).run(tiny_modelpool)


DESCRIBED = {"classnames": ["a", "b"], "templates": ["a {}."]}


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (SelectAlgorithm, {}),
        (AWDAlgorithm, {"scaling": "auto"}),
        (AWDAlgorithm, {}),
        (AdaMergingAlgorithm, {"init": "auto"}),
    ],
)
def test_own_tasks_are_known_before_a_test_set_is_opened(unread, method, options):
    def check_samples():
        assert get_num_classes("digits") == 2  # as the method describes it
        raise InterruptedError

    def run(tasks):
        algorithm = method(tasks=tasks, **options)
        taskpool = SimpleNamespace(check_samples=check_samples)
        algorithm._program = SimpleNamespace(taskpool=taskpool)
        algorithm.run(unread)

    with pytest.raises(ValueError, match=r"`tasks` describes \['nope'\], but the pool"):
        run({"nope": DESCRIBED})
    with pytest.raises(ValueError, match="tasks.digits is .*expected classnames"):
        run({"digits": {"templates": ["a {}."]}})
    with registered_tasks(), pytest.raises(InterruptedError):
        run({"digits": DESCRIBED})


def test_a_method_without_a_scaling_factor_needs_lists(unread):
    message = (
        "over=null: there is no option 'scaling_factor', expected lists for some of"
    )
    with pytest.raises(ValueError, match=f"{message} iter_num"):
        SelectAlgorithm(base=WUDI)
    message = "scaling=auto: there is no option 'scaling_factor', expected lists"
    with pytest.raises(ValueError, match=message):
        AWDAlgorithm(base=WUDI, scaling="auto").run(unread)


def test_pools_without_data_are_refused():
    pool = {name: nn.Linear(2, 2) for name in ("_pretrained_", "a")}
    with pytest.raises(TypeError, match="does not know the pool class BaseModelPool"):
        SelectAlgorithm().run(pool)
    message = "scaling=auto needs samples, and nothing knows those of a BaseModelPool"
    with pytest.raises(TypeError, match=message):
        AWDAlgorithm(scaling="auto").run(pool)


def test_tasks_without_classes_are_refused():
    adapter = SimpleNamespace(
        tasks=("a", "b"), dense=False, has_classes=lambda task: task == "a"
    )
    with pytest.raises(ValueError, match=r"compares predicted classes, but \['b'\]"):
        require_classes(adapter)


@pytest.mark.parametrize("init", ["automatic", None, True, 11])
def test_a_start_is_a_number_or_auto(init):
    message = rf"init is {init!r}, expected a number in \[-10, 10\], or 'auto'."
    with pytest.raises(ValueError, match=message):
        TintingAlgorithm(init=init)


def test_a_method_that_gives_no_model_is_named(tiny_modelpool):
    base = {"_target_": "fusion_bench.method.TaskSingularVectorMerging"}
    base |= {"alpha": 1, "exclude_keys": None, "return_single_task_models": True}
    options = {"max_samples": 8, "num_workers": 0, "over": {"alpha": [1]}}
    with pytest.raises(
        TypeError, match="TaskSingularVectorMerging gives a .*, not a mod"
    ):
        SelectAlgorithm(base=base, **options).run(tiny_modelpool)


@pytest.mark.parametrize(
    ("base", "over", "message"),
    [
        (
            {"_target_": "fusion_bench.method.TiesMergingAlgorithm"}
            | {
                "scaling_factor": 0.3,
                "remove_keys": [],
                "merge_func": "sum",
                "threshold": 9,
            },
            {"threshold": [20, 200]},
            r"The candidate threshold=200 cannot be merged \(RuntimeError: ",
        ),
        (
            TASK_ARITHMETIC | {"scaling_factor": 0.3},
            {"scaling_factor": [1e41]},
            "holds NaN or Inf .* It is that of scaling_factor=1e[+]41: give other values",
        ),
    ],
)
def test_a_candidate_that_cannot_be_merged_is_named(
    tiny_modelpool, base, over, message
):
    options = {"max_samples": 8, "num_workers": 0, "over": over}
    with pytest.raises(ValueError, match=message):
        SelectAlgorithm(base=base, **options).run(tiny_modelpool)
