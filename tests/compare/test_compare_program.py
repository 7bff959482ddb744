"""The command itself: real pools, interruptions, several processes at once."""

import json
import os

import pytest
from forked import run_script
from running import make_program, read_cells

from fusion_plugins import load_differences, load_results
from fusion_plugins.compare.evaluation import evaluate_model
from fusion_plugins.compare.files import Answers
from fusion_plugins.demo import demo_taskpool
from fusion_plugins.pools.loading import PRETRAINED, load_model

pytestmark = pytest.mark.slow

# The command, whose launcher forks: its processes import nothing anew.
SIDE_BY_SIDE = """
from fusion_bench.scripts.cli import _hydra_main
from fusion_plugins.awd import report
from fusion_plugins.compare import pictures
from joblib.externals.loky.backend.context import set_start_method

set_start_method("fork")
pictures.draw_pictures = report.save_pictures = lambda *_: []  # most of the time
_hydra_main()
"""
QUICK = "{adamerging: {steps: 2, guard_every: 1, guard_samples: 8}}"


def tiny(root) -> list[str]:
    pools = ("modelpool", "taskpool")
    return [f"{p}=demo" for p in pools] + [f"{p}.root={root}" for p in pools]


@pytest.fixture(scope="module")
def finished(tiny_pool_root, tmp_path_factory):
    """A small comparison, run once: its folder and records."""
    folder = tmp_path_factory.mktemp("compare")
    methods = (
        f"methods=[pretrained,experts,task_arithmetic,awd,{QUICK},"
        "{tinting_pp: {rounds: 2, guard_every: 1, guard_samples: 8}}]"
    )
    with pytest.MonkeyPatch.context() as patch:  # figures are drawn in other tests
        patch.setattr("fusion_plugins.compare.pictures.draw_pictures", lambda *_: [])
        make_program(folder, *tiny(tiny_pool_root), methods).run()
    return folder / "results", read_cells(folder / "results")


def test_every_kind_of_method_is_measured(finished, tiny_pool_root):
    _, cells = finished
    assert {cell["status"] for cell in cells.values()} == {"done"}
    by_method = {cell["method"]: cell for cell in cells.values()}
    built = json.loads((tiny_pool_root / "pool.json").read_text())["accuracy"]
    for row in ("pretrained", "experts"):
        for task, value in built[row].items():
            measured = by_method[row]["tasks"][task]["accuracy"]
            assert measured == pytest.approx(value)
    for cell in cells.values():
        assert list(cell["tasks"]) == ["digits", "textures", "colours"]
        assert {"accuracy", "loss", "ece"} <= set(cell["average"])
        assert 0 < cell["normalised_average"] <= 1.2
        for task, stored in cell["answers"].items():
            accuracy = Answers.read(stored).right.mean()
            assert accuracy == pytest.approx(cell["tasks"][task]["accuracy"])
        assert cell["samples"]["evaluated"] == 3 * 120
    tinted = by_method["tinting_pp"]["parameters"]
    assert tinted["per_task"] < tinted["model"] and tinted["added"] > 0
    # Steps (or rounds), tasks, batches of each in a step, samples.
    assert by_method["adamerging"]["samples"]["adapted"] == 2 * 3 * 2 * 16
    assert by_method["tinting_pp"]["samples"]["adapted"] == 2 * 3 * 32
    assert by_method["awd"]["samples"]["adapted"] is None
    assert by_method["awd"]["parameters"]["added"] == 0
    assert by_method["task_arithmetic"]["config"]["scaling_factor"] == 0.3


def test_the_frame_has_what_reviewers_ask_for(finished):
    cells = load_results(finished[0], baseline="awd").set_index("method")
    learned = cells.loc["tinting_pp"]
    rate = learned["samples_per_second/evaluate"]
    assert rate == pytest.approx(360 / learned["seconds/evaluate"])
    assert 0 <= learned["own_mib/cpu"] < learned["peak_mib/cpu"]
    assert learned["baseline"] == "awd" and learned["energy_joules/merge"] is None
    low, high = learned["low/average"], learned["high/average"]
    assert low <= learned["difference/average"] <= high
    assert set(load_differences(finished[0])["baseline"]) == {"task_arithmetic"}


@pytest.mark.parametrize(
    "pool_class", ["fusion_bench.taskpool.CLIPVisionModelTaskPool"]
)
def test_answers_of_fusionbenchs_own_task_pool(
    tiny_pool_root, tiny_modelpool, pool_class
):
    taskpool = demo_taskpool(root=tiny_pool_root, pool_class=pool_class)
    model = load_model(tiny_modelpool, PRETRAINED)
    found = evaluate_model(model, taskpool)
    assert list(found.answers) == ["digits", "textures", "colours"]
    for task, answers in found.answers.items():
        assert answers.right.mean() == pytest.approx(found.tasks[task]["accuracy"])


def test_artifacts_of_learned_methods_are_in_their_records(finished):
    folder, cells = finished
    by_method = {cell["method"]: cell["artifacts"] for cell in cells.values()}
    for name in ("adamerging", "tinting_pp"):
        learned = by_method[name]["coefficients"]
        assert learned["tasks"] == ["digits", "textures", "colours"]
        rows = learned["values"]
        assert len(rows) == 3 and {len(row) for row in rows} == {len(learned["keys"])}
        steps = by_method[name]["history"]["step"]
        assert len(by_method[name]["history"]["loss"]) == len(steps) >= 2
    cosines = by_method["awd"]["cosines"]
    assert len(cosines["before"]) == len(cosines["after"][0]) == 3
    assert by_method["task_arithmetic"]["coefficients"] is None
    assert (folder / "report.html").is_file()
    assert not list(folder.rglob("merged_model"))


@pytest.mark.parametrize(
    ("launcher", "option", "methods"),
    [
        (
            "joblib",
            "hydra.launcher.n_jobs=2",
            "[pretrained,awd],[pretrained,{awd: {alpha: 0.2}}]",
        ),
        # Its jobs import everything anew: one of them.
        (
            "submitit_local",
            "hydra.launcher.timeout_min=9",
            "[pretrained,awd,{awd: {alpha: 0.2}}]",
        ),
    ],
)
def test_cells_run_side_by_side_into_one_folder(
    launcher, option, methods, tiny_pool_root, tmp_path
):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.split('_')[0]}_launcher")
    script, results = tmp_path / "side_by_side.py", tmp_path / "results"
    script.write_text(SIDE_BY_SIDE)
    words = [
        *("--config-name", "compare", "--multirun"),
        f"hydra/launcher={launcher}",
        option,
        f"methods={methods}",
        *(*tiny(tiny_pool_root), f"results={results}", "fabric.accelerator=cpu"),
    ]
    run = run_script([script, *words], tmp_path, os.environ | {"COLUMNS": "200"})
    assert run.returncode == 0, run.stderr[-3000:]
    cells = read_cells(results)
    assert {cell["label"] for cell in cells.values()} == {
        "pretrained",
        "awd",
        "awd (alpha=0.2)",
    }
    assert all(cell["status"] == "done" for cell in cells.values())
    # Both jobs were asked for it, one ran it. Submitit's jobs speak into files.
    logs = [
        f.read_text() for f in tmp_path.rglob(".submitit/*/*.*") if f.suffix != ".pkl"
    ]
    said = "".join([run.stdout, run.stderr, *logs])
    assert said.count(": pretrained-seed0") == 1
    assert "awd (alpha=0.2)" in (results / "results.md").read_text()
