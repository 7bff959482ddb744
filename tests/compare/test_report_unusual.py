"""Pages of unusual, damaged and empty results folders."""

import json
import re

import pytest
from page_probes import Page, edit_cell, report, write_report
from sample_results import METHODS, TASKS, write_sample

from fusion_plugins.compare import load_results
from fusion_plugins.compare.results import Comparison


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return report(tmp_path_factory.mktemp("report") / "results", False, layers=12)


def test_writing_again_gives_the_same_page_and_leaves_no_other_file(tmp_path):
    folder = write_sample(tmp_path / "results", METHODS[5:8], seeds=(0, 1), layers=3)
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    names = {path.name for path in folder.iterdir()}
    assert names == {"cells", "compare.json", "report.html"}


@pytest.mark.parametrize(
    "options",
    [
        {"methods": METHODS[2:3], "seeds": (0,)},
        {"methods": METHODS[-1:]},
        {"methods": METHODS[2:5]},
        {"tasks": ("digits",)},
        {"tasks": TASKS[:2]},
        {"layers": 1},
    ],
    ids="one-method all-failed no-references one-task two-tasks one-layer".split(),
)
def test_unusual_comparisons_make_a_page(tmp_path, options):
    page = report(tmp_path / "results", **options)
    assert "results" in page.ids()
    methods = options.get("methods", METHODS)
    assert ("time" in page.ids()) is (methods != METHODS[-1:])
    assert ("differences" in page.ids()) is (len(methods) > 1)  # to the baseline


def test_lower_is_better_turns_order_and_best_round(tmp_path):
    folder = write_sample(tmp_path / "results", methods=METHODS[2:5], layers=12)

    def change(cell):
        cell.update(metric="loss", higher_is_better=False)

    edit_cell(folder, change)
    comparison = Comparison.read(folder)
    losses = [comparison.average(row).mean for row in comparison.rows]
    assert losses == sorted(losses)
    page = Page(write_report(folder, False).read_text("utf-8"))
    assert 'aria-sort="ascending"' in page.source
    assert "Lower loss is better" in page.visible


def test_missing_and_infinite_values(tmp_path):
    folder = write_sample(tmp_path / "results", layers=12)

    def change(cell):
        cell["tasks"].pop("digits", None)
        cell.update(git_commit=None, device=None, versions={}, config=None)
        cell["seconds"] = {"merge": None, "evaluate": None}
        cell["peak_memory_mib"] = {"cpu": None, "cuda": 4096.0}
        cell["parameters"] = {"model": None, "added": None}
        if cell["tasks"]:
            cell["tasks"]["shapes"]["loss"] = float("nan")
            cell["average"]["loss"] = float("inf")
        if cell["artifacts"]["history"]:
            cell["artifacts"]["history"]["loss"][:3] = [None, float("nan"), 2.0]

    edit_cell(folder, change)
    page = Page(write_report(folder).read_text("utf-8"))
    assert "peak GPU memory" in page.visible and "4,096" in page.visible
    assert "NaN" in page.visible
    places = " ".join(a.get("style", "") + a.get("points", "") for _, a in page.tags)
    assert not re.search(r"nan|inf", places)


def test_some_seeds_failed(tmp_path):
    folder = write_sample(tmp_path / "results", methods=METHODS[2:5], layers=12)
    path = sorted((folder / "cells").glob("*seed1.json"))[0]
    cell = json.loads(path.read_text())
    cell.update(status="failed", error={"type": "KeyError", "message": "x"}, tasks={})
    path.write_text(json.dumps(cell))
    page = Page(write_report(folder, False).read_text("utf-8"))
    assert "1 of 3 failed" in page.visible
    assert "seed 1: KeyError" in page.visible


def test_shares_of_the_experts_are_shown_where_known(page, tmp_path):
    comparison = Comparison.read(write_sample(tmp_path / "results", layers=12))
    share = comparison.row("awd").over_seeds("normalised/shapes")
    assert f"{100 * share.mean:.1f} ± {100 * share.deviation:.1f}" in page.visible
    alone = report(tmp_path / "alone", False, methods=METHODS[2:5], layers=12)
    assert "of experts" not in alone.visible


def test_wrong_folders_say_what_to_do(tmp_path):
    for folder in (tmp_path, write_sample(tmp_path / "empty", methods=())):
        with pytest.raises(ValueError, match="Run fusion_bench --config-name compare"):
            load_results(folder)
    folder = write_sample(tmp_path / "broken", layers=12)
    cell = sorted((folder / "cells").glob("*.json"))[0]
    cell.write_text('{"format": 2}')
    with pytest.raises(ValueError, match="has format 2, this release reads 1"):
        load_results(folder)
    cell.write_text('{"format": ')
    with pytest.raises(ValueError, match="is not a file of a comparison"):
        load_results(folder)
