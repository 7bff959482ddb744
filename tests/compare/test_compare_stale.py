"""Finished cells serve only what has not changed; damaged and foreign files serve nothing."""

import csv
import json
import os
import re
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from forked import run_script
from running import run_toy, toy_modelpool
from sample_results import write_sample

from fusion_plugins.compare import gather, inputs, load_results


def accuracy(cells: dict, cell: str) -> float:
    return cells[cell]["average"]["accuracy"]


@pytest.mark.parametrize(
    ("pool", "target", "values"),
    [
        ("modelpool", "file_modelpool", [0.5, 0.4]),
        ("taskpool", "FileTaskPool", [1, 0.8]),
    ],
)
def test_what_changed_in_place_is_measured_again(
    monkeypatch, tmp_path, pool, target, values
):
    file, results = tmp_path / "content", tmp_path / "results"
    found = []
    for value in values:
        file.write_text(str(value))
        options = {pool: {"_target_": f"running.{target}", "path": str(file)}}
        cells = run_toy(monkeypatch, results, "experts", **options)
        found.append(accuracy(cells, "experts-seed0"))
    want = [(1 + v) / 2 for v in values] if pool == "modelpool" else values
    assert found == pytest.approx(want)
    assert len(list((results / "stale").iterdir())) == 1


def test_rows_of_changed_experts_leave_the_tables(monkeypatch, tmp_path):
    file, results = tmp_path / "content", tmp_path / "results"
    pool = {"_target_": "running.file_modelpool", "path": str(file)}
    for value, method in (("0.5", "experts"), ("0.4", "DrawWeights")):
        file.write_text(value)
        run_toy(monkeypatch, results, method, modelpool=pool)
    assert load_results(results)["label"].tolist() == ["DrawWeights"]


@pytest.mark.parametrize("changed", [{"fast_dev_run": True}, {"metric": "loss"}])
def test_rows_of_other_settings_leave_the_tables(monkeypatch, tmp_path, changed):
    names = "pretrained", "experts", "DrawWeights"
    run_toy(monkeypatch, tmp_path / "a", *names, **changed)
    run_toy(monkeypatch, tmp_path / "a", "DrawWeights")
    assert load_results(tmp_path / "a")["label"].tolist() == ["DrawWeights"]


def test_shares_are_of_experts_with_the_same_settings(monkeypatch, tmp_path):
    other, results = tmp_path / "other", tmp_path / "results"
    for folder, options in ((other, {"fast_dev_run": True}), (results, {})):
        run_toy(monkeypatch, folder, "experts", **options)
    change(other / "cells/experts-seed0.json", tasks={"left": {"accuracy": 9}})
    run_toy(monkeypatch, results, "experts", "DrawWeights", add=[str(other)])
    shares = load_results(results).set_index("label")["normalised_average"]
    assert shares["experts"] == shares["experts [other]"] == 1
    assert shares["DrawWeights"] < 1


def test_cells_of_releases_without_settings_still_serve(monkeypatch, tmp_path):
    old = run_toy(monkeypatch, tmp_path, "pretrained", "experts", fast_dev_run=True)
    for id, cell in old.items():
        identity = {k: v for k, v in cell["identity"].items() if k != "settings"}
        change(tmp_path / "cells" / f"{id}.json", identity=identity)
    names = "experts", "DrawWeights"
    cells = run_toy(monkeypatch, tmp_path, *names, fast_dev_run=True)
    assert {cells[id]["finished"] for id in old} == {
        cell["finished"] for cell in old.values()
    }
    assert cells["DrawWeights-seed0"]["normalised_average"] is not None
    assert len({cell["identity"]["settings"] for cell in cells.values()}) == 1


def test_models_in_memory_count_by_their_weights(monkeypatch, tmp_path):
    pool = toy_modelpool()
    monkeypatch.setattr("running.toy_modelpool", lambda: pool)
    first = run_toy(monkeypatch, tmp_path, "experts")
    pool._models["left"].weight.data.fill_(0.25)
    second = run_toy(monkeypatch, tmp_path, "experts")
    assert accuracy(first, "experts-seed0") == 1.0
    assert accuracy(second, "experts-seed0") == 0.625


def test_files_samples_and_hub_revisions_count_and_other_text_does_not(
    monkeypatch, tmp_path
):
    head = tmp_path / "hub/datasets--ylecun--mnist/refs/main"
    head.parent.mkdir(parents=True)
    monkeypatch.setattr(inputs, "HF_HUB_CACHE", str(tmp_path / "hub"))
    config = {
        "path": "ylecun/mnist",
        "file": str(tmp_path / "labels.csv"),
        "samples": Samples(),
        "prompt": "a photo of {}" * 100,
        "cache_dir": str(tmp_path),
    }
    assert set(dict(inputs.references(config))) == {".samples"}
    head.write_text("first")
    (tmp_path / "labels.csv").write_text("cat")
    before = dict(inputs.references(config))
    assert set(before) == {".path", ".file", ".samples"}
    head.write_text("other")
    (tmp_path / "labels.csv").write_text("dog")
    Samples.value = 2
    after = dict(inputs.references(config))
    assert all(before[place] != after[place] for place in before)


class Samples:
    """A data set in memory."""

    value = 1

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {"image": np.full((2, 2), self.value), "label": index}


def test_versions_count(monkeypatch, tmp_path):
    run_toy(monkeypatch, tmp_path, "pretrained")
    monkeypatch.setattr(inputs, "versions", lambda: {"torch": "99"})
    run_toy(monkeypatch, tmp_path, "pretrained")
    assert len(list((tmp_path / "stale").iterdir())) == 1


@pytest.mark.parametrize("order", [*permutations(["RegisterClasses", "DrawWeights"])])
def test_the_order_of_methods_decides_nothing(monkeypatch, tmp_path, order):
    pool = {"_target_": "running.ClassesTaskPool"}
    cells = run_toy(monkeypatch, tmp_path, "pretrained", *order, taskpool=pool)
    assert accuracy(cells, "DrawWeights-seed0") == 0.1
    assert accuracy(cells, "pretrained-seed0") == 0.1
    assert accuracy(cells, "RegisterClasses-seed0") == 0.02


def change(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 0}, "has format 0, this release reads 1"),
        ({"id": "../../stolen"}, "id is '../../stolen', not the file's name"),
        ({"tasks": None}, "tasks is 'None'"),
        ({"tasks": {"digits": 3}}, "digits is '3'"),
        ({"tasks": {"digits": {"accuracy": "high"}}}, "digits is"),
        ({"metric": "gone"}, "digits is"),
        ({"seed": "zero"}, "seed is 'zero'"),
        ({"status": "half"}, "status is 'half'"),
        ({"status": "failed", "error": {}}, "error holds only []"),
        ({"order": None}, "order is 'None'"),
        ({"identity": None}, "identity is 'None'"),
        ({"artifacts": None}, "artifacts is 'None'"),
        ({"overrides": None}, "overrides is 'None'"),
    ],
)
def test_damaged_and_foreign_cells_are_named_with_the_fix(tmp_path, changes, message):
    folder = write_sample(tmp_path / "results", layers=3)
    change(folder / "cells/000-seed0.json", **changes)
    with pytest.raises(ValueError) as raised:
        gather(folder)
    said = str(raised.value)
    assert message in said and "000-seed0.json" in said and "\n" not in said
    assert "Move it away and run the comparison again." in said
    assert {p.name for p in tmp_path.iterdir()} == {"results"}


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b"[]", b"null"])
@pytest.mark.parametrize("name", ["compare.json", "cells/000-seed0.json"])
def test_files_that_are_no_results_are_named(tmp_path, name, content):
    folder = write_sample(tmp_path / "results", layers=3)
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{Path(name).name} is not a file of a comp"):
        gather(folder)


def test_no_cell_of_a_csv_file_runs_as_a_formula(tmp_path, monkeypatch):
    monkeypatch.setattr("fusion_plugins.compare.gathering._write_report", lambda *_: 0)
    methods = [
        ('=HYPERLINK("x")', {}, 0.6, 1.0, False, False, False),
        ("@sum", {}, 0.5, 1.0, False, False, False),
        ("-1+1", {}, 0.4, 1.0, False, False, False),
    ]
    folder = write_sample(tmp_path / "r", methods=methods, tasks=("+t", "u"), layers=3)
    for path in (folder / "cells").glob("*.json"):
        tasks = {"+t": {"accuracy": -0.5}, "u": {"accuracy": 0.5}}
        change(path, tasks=tasks, average={"accuracy": 0.0})
    gather(folder)
    for name in ("results.csv", "cells.csv"):
        heading, *lines = csv.reader((folder / name).open())
        texts = [text for line in (heading, *lines) for text in line]
        risky = [t for t in texts if t[:1] in tuple("=+-@") and t != "-0.5"]
        assert risky == [] and "-0.5" in texts
        assert '\'=HYPERLINK("x")' in texts and "'@sum" in texts and "'-1+1" in texts


def test_how_many_cells_failed_is_said(monkeypatch, tmp_path, capsys):
    run_toy(monkeypatch, tmp_path, "Broken", "DrawWeights", "pretrained")
    assert "1 of 3 cells failed." in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("multirun", [[], ["--multirun"]])
def test_an_error_of_the_command_is_one_line(tmp_path, multirun):
    command = [Path(sys.executable).with_name("fusion_bench"), "--config-name"]
    command += ["compare", *multirun, "modelpool=demo", "taskpool=demo"]
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    run = run_script([*command, "methods=[awdd]"], tmp_path, environment)
    said = run.stdout + run.stderr
    assert run.returncode == 1 and "Traceback" not in said
    (line,) = [line for line in said.splitlines() if "which is no method" in line]
    assert re.fullmatch(
        r"ValueError: methods holds 'awdd', .* \(HYDRA_FULL_ERROR=1 shows where\)", line
    )
