"""Cells run apart from each other, on any task pool, and say what they cost."""

import math

import pytest
import running
import torch
from huggingface_hub import ModelCard
from running import ToyTaskPool, read_cells, run_toy, toy_modelpool

from fusion_plugins.compare.columns import rows_frame
from fusion_plugins.compare.evaluation import (
    check_task_names,
    evaluate_experts,
    read_tasks,
    score,
)
from fusion_plugins.compare.reports import note_main_scores, report_scores
from fusion_plugins.compare.results import Comparison


@pytest.fixture(autouse=True)
def toys_in_memory(monkeypatch):
    """One pool object for all programs of a test, as a user's own would be."""
    pool, taskpools = toy_modelpool(), []

    def make_taskpool(**options):
        taskpools.append(ToyTaskPool(**options))
        return taskpools[-1]

    make = ToyTaskPool
    monkeypatch.setattr(running, "toy_modelpool", lambda: pool)
    monkeypatch.setattr(make, "made", taskpools, raising=False)
    return pool


def test_references_and_shares(monkeypatch, tmp_path):
    cells = run_toy(monkeypatch, tmp_path, "pretrained", "experts", "Broken")
    base, experts = cells["pretrained-seed0"], cells["experts-seed0"]
    assert base["tasks"] == {
        "left": {"accuracy": 0.0, "loss": 1.0},
        "right": {"accuracy": 0.0, "loss": 1.0},
    }
    assert experts["tasks"]["left"]["accuracy"] == 1.0
    assert experts["tasks"]["right"]["accuracy"] == 1.0
    assert experts["average"] == {"accuracy": 1.0, "loss": 0.0}
    assert base["metric"] == "accuracy" and base["higher_is_better"] is True
    assert base["normalised"] == {"left": 0.0, "right": 0.0}
    assert experts["normalised_average"] == 1.0
    assert base["parameters"] == {"model": 2, "added": 0, "per_task": 2}
    assert experts["parameters"] == {"model": 4, "added": 2, "per_task": 2}
    assert (
        base["peak_memory_mib"]["cpu"] > 50 and base["peak_memory_mib"]["cuda"] is None
    )
    assert base["versions"]["fusion-bench"] and base["device"] == "cpu"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": {"lft": "loss"}}, r"metric names \['lft'\]; the tasks are .'left'"),
        ({"tables": {"sort": "lft"}}, "sort: there is no 'lft', only .*'left'"),
        ({"tables": {"columns": ["lft"]}}, "columns: there is no 'lft', only tasks, l"),
        ({"metric": ["loss"]}, r"metric is \['loss'\], expected a metric's name, or"),
        ({"metric": {"left": 3}}, r"metric is .'left': 3., expected a metric's name"),
        ({"tables": {"sort": 3}}, "sort is 3, expected the name of a column"),
        ({"tables": {"tasks": [3]}}, r"tasks is \[3\], expected a list of names"),
        ({"tables": {"names": {"left": 3}}}, "names is .'left': 3., expected texts"),
        ({"fast_dev_run": "false"}, "fast_dev_run is 'false', expected one of"),
    ],
)
def test_names_that_no_table_can_show_are_refused_before_a_cell_runs(
    monkeypatch, tmp_path, options, message
):
    monkeypatch.setattr(ToyTaskPool, "evaluate", None)
    with pytest.raises(ValueError, match=f"^{message}"):
        run_toy(monkeypatch, tmp_path, "pretrained", "DrawWeights", **options)


def test_published_numbers_of_other_tasks_are_named(monkeypatch, tmp_path, capsys):
    rows = [{"label": "Mine", "tasks": {"left": 1.0, "rigth": 2.0}}]
    published = {"source": "s", "checkpoints": "c", "rows": rows}
    run_toy(monkeypatch, tmp_path, "pretrained", published=published)
    message = "published: Mine has ['rigth']; the tasks are ['left', 'right']"
    assert message in capsys.readouterr().err


class Unlisted(ToyTaskPool):
    """Names its tasks in its report only."""

    def evaluate(self, model):
        Unlisted.calls += 1
        return {task: {"accuracy": 0.5} for task in self.tasks}

    def __init__(self, tasks):
        super().__init__(tasks)
        self.tasks = tasks
        del self._test_datasets


@pytest.mark.parametrize("pool", ["ToyTaskPool", "Unlisted"])
@pytest.mark.parametrize("name", ["seeds", "label", "low", "average_std", "left_std"])
def test_a_task_with_the_name_of_a_column_stops_the_comparison(
    monkeypatch, tmp_path, pool, name
):
    monkeypatch.setattr(running, "Unlisted", Unlisted, raising=False)
    monkeypatch.setattr(ToyTaskPool, "evaluate", None)
    monkeypatch.setattr(Unlisted, "calls", 0, raising=False)
    tasks = {"_target_": f"running.{pool}", "tasks": ["left", name]}
    message = (
        f"^The task '{name}' has the name of a column .* rename it in the task pool"
    )
    with pytest.raises(ValueError, match=message):
        run_toy(monkeypatch, tmp_path, "pretrained", "DrawWeights", taskpool=tasks)
    assert Unlisted.calls == (pool == "Unlisted")


@pytest.mark.parametrize("name", ["average", "model_info"])
def test_a_task_with_a_name_that_reports_hold_is_refused(monkeypatch, tmp_path, name):
    monkeypatch.setattr(ToyTaskPool, "evaluate", None)
    with pytest.raises(ValueError, match=f"^The task '{name}' has the name of a"):
        run_toy(monkeypatch, tmp_path, "pretrained", taskpool={"tasks": ["left", name]})


def test_every_column_beside_the_tasks_is_a_name_no_task_may_have(
    monkeypatch, tmp_path
):
    run_toy(monkeypatch, tmp_path, "pretrained", "experts", "DrawWeights")
    found = Comparison.read(tmp_path)
    names = set(rows_frame(found)) - {n + s for n in found.tasks for s in ("", "_std")}
    for name in names:
        with pytest.raises(ValueError, match="has the name of a column"):
            check_task_names(["left", name])


def test_an_unknown_metric_stops_the_comparison_at_once(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"^metric=f1: left reports only \['accuracy'"):
        run_toy(monkeypatch, tmp_path, "pretrained", "DrawWeights", metric="f1")
    assert read_cells(tmp_path) == {}


def test_a_failing_method_is_recorded_and_loses_no_other(monkeypatch, tmp_path, capsys):
    names = "Broken", "DrawWeights", "Nothing"
    cells = run_toy(monkeypatch, tmp_path, *names)
    assert cells["DrawWeights-seed0"]["status"] == "done"
    broken = cells["Broken-seed0"]
    assert broken["status"] == "failed" and broken["tasks"] == {}
    assert broken["error"]["type"] == "RuntimeError"
    assert broken["error"]["message"] == "no_weights & 100% broken"
    assert "in run" in broken["error"]["traceback"]
    assert "returned NoneType" in cells["Nothing-seed0"]["error"]["message"]
    said = " ".join(capsys.readouterr().out.split())
    assert "Failed: Broken, seed 0: RuntimeError: no_weights & 100% broken" in said


def test_a_result_does_not_depend_on_what_ran_before(monkeypatch, tmp_path):
    alone = run_toy(monkeypatch, tmp_path / "a", "DrawWeights", seeds=[3])
    names = "SpoilPool", "Broken", "pretrained", "DrawWeights"
    later = run_toy(monkeypatch, tmp_path / "b", *names, seeds=[0, 1, 3])
    want = alone["DrawWeights-seed3"]["tasks"]
    assert later["DrawWeights-seed3"]["tasks"] == want
    assert later["DrawWeights-seed1"]["tasks"] != want
    assert later["pretrained-seed0"]["average"]["accuracy"] == 0.0
    assert torch.is_grad_enabled()


def test_the_callers_models_are_not_changed(monkeypatch, tmp_path, toys_in_memory):
    before = {n: m.weight.clone() for n, m in toys_in_memory._models.items()}
    cells = run_toy(monkeypatch, tmp_path, "SpoilPool", "experts")
    assert cells["SpoilPool-seed0"]["status"] == "done"
    assert toys_in_memory.all_model_names == ["_pretrained_", "left", "right"]
    for name, weight in before.items():
        assert torch.equal(toys_in_memory._models[name].weight, weight)
    assert cells["experts-seed0"]["average"]["accuracy"] == 1.0


def test_a_method_with_several_models_has_a_record_for_each(monkeypatch, tmp_path):
    cells = run_toy(monkeypatch, tmp_path, "Several")
    assert list(cells) == ["Several-seed0.models.left", "Several-seed0.models.right"]
    left = cells["Several-seed0.models.left"]
    assert left["label"] == "Several / models.left" and left["cell"] == "Several-seed0"
    assert left["tasks"]["left"]["accuracy"] == 1.0
    assert left["tasks"]["right"]["accuracy"] == 0.0


@pytest.fixture
def savable(monkeypatch):
    monkeypatch.setattr(
        "fusion_bench.BaseModelPool.save_model",
        lambda self, model, path, **_: torch.save(model.weight, path),
        raising=False,
    )


@pytest.mark.parametrize(
    "names",
    [
        ("数字", "文字"),
        ("a b", "a_b"),
        ("a/b", "a:b"),
        ("x" * 300, "x" * 301),
        (1, "1", "1 (2)"),
    ],
)
def test_models_of_any_names_are_all_kept(monkeypatch, tmp_path, savable, names):
    def run(self, modelpool):
        return {name: modelpool.load_pretrained_model() for name in names}

    monkeypatch.setattr(running.Several, "run", run)
    cells = run_toy(monkeypatch, tmp_path, "Several", save_models=True)
    assert len({cell["label"] for cell in cells.values()}) == len(names)
    assert len(list(tmp_path.rglob("merged_model.*"))) == len(names)
    finished = [cell["finished"] for cell in cells.values()]
    again = run_toy(monkeypatch, tmp_path, "Several", save_models=True)
    assert [cell["finished"] for cell in again.values()] == finished


def test_merged_models_are_kept_on_request(monkeypatch, tmp_path, savable):
    run_toy(monkeypatch, tmp_path / "no", "DrawWeights")
    assert not list((tmp_path / "no").rglob("merged_model*"))
    run_toy(monkeypatch, tmp_path / "yes", "DrawWeights", save_models=True)
    assert (tmp_path / "yes/work/DrawWeights-seed0/merged_model").is_file()


def test_experts_see_their_own_task_only():
    taskpool = ToyTaskPool()
    tasks = evaluate_experts(toy_modelpool(), taskpool).tasks
    assert taskpool.evaluated == ["left", "right"]
    assert {task: r["accuracy"] for task, r in tasks.items()} == {"left": 1, "right": 1}
    assert list(taskpool._test_datasets) == ["left", "right"]


def test_tasks_without_an_expert_are_left_out_and_no_match_is_an_error():
    found = ToyTaskPool(tasks=["unseen", "right"])
    some = evaluate_experts(toy_modelpool(), found).tasks
    assert list(some) == ["right"]
    with pytest.raises(
        ValueError, match=r"\['left', 'right'\] have no task of the same"
    ):
        evaluate_experts(toy_modelpool(), ToyTaskPool(tasks=["unseen"]))


def test_a_pool_that_does_not_name_its_tasks_is_evaluated_whole():
    class Unnamed(ToyTaskPool):
        def evaluate(self, model):
            self._test_datasets, tasks = {"left": 0, "right": 1}, None
            report = super().evaluate(model)
            self._test_datasets = tasks
            return report

    taskpool = Unnamed()
    taskpool._test_datasets = None
    tasks = evaluate_experts(toy_modelpool(), taskpool).tasks
    assert taskpool.evaluated == ["left", "right"] * 2
    assert [r["accuracy"] for r in tasks.values()] == [1, 1]


@pytest.mark.parametrize(
    ("tasks", "metric", "main", "higher"),
    [
        ({"a": {"loss": 1.0, "accuracy": 0.5}}, None, "accuracy", True),
        ({"a": {"loss": 1.0, "made_up": 0.5}}, None, "made_up", True),
        ({"a": {"perplexity": 9.0}}, None, "perplexity", False),
        ({"a": {"loss": 1.0, "accuracy": 0.5}}, "loss", "loss", False),
        ({"a": {"accuracy": 0.5}, "b": {"spearman_rho": 0.7}}, None, "score", True),
        ({"a": {"x": 0.5, "y": 0.1}, "b": {"x": 0.7}}, {"a": "y"}, "score", True),
    ],
)
def test_the_main_metric_is_found_or_chosen(tasks, metric, main, higher):
    scores = score(read_tasks(tasks), metric)
    assert (scores.metric, scores.higher_is_better) == (main, higher)
    chosen = {"spearman_rho": 0.7}
    if main == "score" and chosen == tasks["b"]:
        assert scores.average() == {"score": pytest.approx(0.6)}
        assert scores.tasks["b"]["score"] == 0.7


@pytest.mark.parametrize(
    ("tasks", "metric", "metrics", "lower"),
    [
        ({"a": {"accuracy": 0.5}, "b": {"rmse": 9.0}}, None, "accuracy rmse", ["b"]),
        (
            {"a": {"mIoU": 0.5}, "b": {"abs_err": 1, "d": 2}},
            None,
            "mIoU abs_err",
            ["b"],
        ),
        ({"a": {"loss": 0.5}, "b": {"wer": 0.1}}, None, "loss wer", ["a", "b"]),
        ({"a": {"f1": 0.5, "ece": 1}, "b": {"f1": 1}}, {"a": "ece"}, "ece f1", ["a"]),
    ],
)
def test_unlike_metrics_keep_their_names_and_have_no_mean(
    tasks, metric, metrics, lower
):
    scores = score(read_tasks(tasks), metric)
    assert scores.metrics == dict(zip("ab", metrics.split(), strict=True))
    assert (scores.lower_is_better, scores.average()) == (lower, {})
    assert scores.tasks["b"]["score"] == tasks["b"][scores.metrics["b"]]
    assert (scores.metric, scores.higher_is_better) == ("score", True)
    assert report_scores(tasks) is None or metric  # a run alone knows no experts


def test_a_saved_models_card_names_each_tasks_metric(tmp_path):
    (tmp_path / "README.md").write_text("---\ntags: [a]\n---\n")
    tasks = {"a": {"accuracy": 0.5}, "b": {"rmse": 9.0}}
    note_main_scores(tmp_path, score(tasks))
    found = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert [r.metric_type for r in found] == ["accuracy", "rmse"]
    assert [r.metric_value for r in found] == [0.5, 9.0]


@pytest.mark.parametrize(
    ("report", "metric", "message"),
    [
        ({"model_info": {"n": 1}}, None, "reported no task with a number"),
        (None, None, "reported no task with a number"),
        ({"a": {"accuracy": math.nan}}, None, "a: accuracy is nan, not a finite"),
        ({"a": {"accuracy": 1.0}}, "f1", "metric=f1: a reports only ['accuracy']"),
    ],
)
def test_reports_that_cannot_be_compared_are_explained(report, metric, message):
    with pytest.raises(ValueError) as raised:
        score(read_tasks(report), metric)
    assert message in str(raised.value)
