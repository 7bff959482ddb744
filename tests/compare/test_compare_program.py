"""The command itself: real pools, interruptions, several processes at once."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from running import make_program, read_cells

pytestmark = pytest.mark.slow

FUSION_BENCH = Path(sys.executable).with_name("fusion_bench")
QUICK = "{adamerging: {steps: 2, guard_every: 1, guard_samples: 8}}"


def tiny(root) -> list[str]:
    pools = ("modelpool", "taskpool")
    return [f"{p}=demo" for p in pools] + [f"{p}.root={root}" for p in pools]


def command(root, results, *arguments: str) -> list[str]:
    fixed = [*tiny(root), f"results={results}", "fabric.accelerator=cpu"]
    return [str(FUSION_BENCH), "--config-name", "compare", *arguments, *fixed]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture(scope="module")
def finished(tiny_pool_root, tmp_path_factory):
    """A small comparison, run once: its folder and records."""
    folder = tmp_path_factory.mktemp("compare")
    methods = (
        f"methods=[pretrained,experts,task_arithmetic,awd,{QUICK},"
        "{tinting_pp: {rounds: 2, guard_every: 1, guard_samples: 8}}]"
    )
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
    assert by_method["tinting_pp"]["parameters"]["added"] > 0
    assert by_method["awd"]["parameters"]["added"] == 0
    assert by_method["task_arithmetic"]["config"]["scaling_factor"] == 0.3


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


@pytest.mark.skipif(
    find_spec("hydra_plugins.hydra_joblib_launcher") is None,
    reason="needs hydra-joblib-launcher",
)
def test_cells_run_side_by_side_into_one_folder(tiny_pool_root, tmp_path):
    results = tmp_path / "results"
    jobs = [
        "--multirun",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "methods=[pretrained,awd],[pretrained,{awd: {alpha: 0.2}}]",
    ]
    run = subprocess.run(
        command(tiny_pool_root, results, *jobs),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    cells = read_cells(results)
    assert {cell["label"] for cell in cells.values()} == {
        "pretrained",
        "awd",
        "awd (alpha=0.2)",
    }
    assert all(cell["status"] == "done" for cell in cells.values())
    # Both jobs were asked for it, one ran it.
    assert (run.stdout + run.stderr).count(": pretrained-seed0") == 1
    assert "awd (alpha=0.2)" in (results / "results.md").read_text()
