"""The page as text: what it holds, what it must not hold, and odd results folders."""

import importlib
import re
import subprocess
import sys

import pytest
from page_probes import Page, edit_cell, report, write_report
from sample_results import TASKS, sample_published, write_large, write_sample

from fusion_plugins.compare.results import Comparison


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "results"
    return report(folder, published=sample_published())


def test_every_section_is_there_and_links_lead_somewhere(page):
    ids = page.ids()
    assert len(ids) == len(set(ids))
    assert {"results", "time", "differences", "coefficients", "cosines"} <= set(ids)
    assert {"curves", "tables", "published", "methods", "setup"} <= set(ids)
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert links and all(link[0] == "#" and link[1:] in ids for link in links)


def test_nothing_is_loaded_from_anywhere(page):
    sources = [a.get("src") or a.get("href") for _, a in page.tags]
    sources = [source for source in sources if source]
    assert sources and all(s.startswith(("data:", "#")) for s in sources)
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttp", page.source)
    assert "http" not in re.sub(r"http-equiv", "", page.source)


def test_values_mean_and_deviation(page, tmp_path):
    comparison = Comparison.read(write_sample(tmp_path / "results"))
    row = next(row for row in comparison.rows if row.label == "tinting_pp")
    values = [cell["average"]["accuracy"] for cell in row.cells]
    mean = sum(values) / 3
    deviation = (sum((v - mean) ** 2 for v in values) / 2) ** 0.5
    assert f"{mean:.1%}"[:-1] + f" ± {deviation:.1%}"[:-1] in page.visible


def test_bold_is_the_best_merged_model_never_the_experts(page):
    best = [a for tag, a in page.tags if tag == "td" and a.get("class") == "best"]
    assert len(best) >= 2 * (len(TASKS) + 1)
    text = write_report_row(page, "experts")
    assert 'class="best"' not in text


def write_report_row(page, label):
    rows = re.findall(r"<tr.*?</tr>", page.source, re.DOTALL)
    return next(row for row in rows if f'data-sort="{label}"' in row)


def test_failed_method_shows_its_error_once_for_equal_seeds(page):
    assert page.visible.count("seeds 0, 1, 2: ValueError") == 1
    assert "Traceback (most recent call last)" in page.visible
    assert ">failed</a>" in write_report_row(page, "wudi/wudi")


def test_published_values_stand_beside_the_measured_ones(page):
    assert "A made-up paper, table 1" in page.visible
    assert "measured: tinting_pp" in page.visible
    assert "70.5 | –" in page.visible  # nobody ran that method


def test_config_versions_and_commit_of_every_method(page):
    assert page.visible.count("0123456789abcdef0123456789abcdef01234567") == 11
    assert "scale_free: true" in page.visible
    assert page.visible.count("transformers 4.50.0") == 11


def test_charts_have_a_text_alternative(page):
    pictures = [a for tag, a in page.tags if a.get("role") == "img"]
    assert len(pictures) == 5 and all(a["aria-label"].strip() for a in pictures)


@pytest.mark.parametrize("field", ["title", "label", "task", "error", "config", "key"])
def test_what_looks_like_html_is_text(tmp_path, field):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'"
    tasks = (evil, "shapes", "digits") if field == "task" else TASKS
    title = evil if field == "title" else "demo"
    folder = write_sample(tmp_path / "results", tasks=tasks, title=title, layers=3)

    def change(cell):
        cell["label"] = evil if field == "label" else cell["label"]
        cell["config"]["note"] = evil if field == "config" else ""
        if field == "error" and cell["error"]:
            cell["error"] = {"type": evil, "message": evil, "traceback": evil}
        if field == "key" and cell["artifacts"]["coefficients"]:
            cell["artifacts"]["coefficients"]["keys"][0] = evil

    edit_cell(folder, change)
    drawn = field in ("label", "task", "key")  # these are in figures, too
    text = write_report(folder, drawn).read_text("utf-8")
    got = Page(text)
    scripts = [a for tag, a in got.tags if tag == "script"]
    assert all(a.get("type") == "application/json" for a in scripts[:-1])
    assert scripts[-1] == {}
    assert not any(a.get("src") == "x" for _, a in got.tags)
    assert not any(name.startswith("on") for _, a in got.tags for name in a)
    assert "alert(1)" in text


def test_only_the_pages_own_script_may_run(page):
    policy = next(a["content"] for _, a in page.tags if "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[\w+/]{43}='(;|$)", policy)


GATHER = """
import sys, time
from fusion_plugins.compare.gathering import gather
gather(sys.argv[1])
assert "torch" not in sys.modules
print(time.process_time())
"""


@pytest.mark.slow
def test_the_largest_comparison_takes_seconds_and_a_small_page(tmp_path):
    folder = write_large(tmp_path / "results", layers=300)
    importlib.import_module("matplotlib.font_manager")  # once on a machine it is slow
    command = [sys.executable, "-c", GATHER, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert float(done.stdout) < 20 and done.stderr == ""
    names = {f"results.{kind}" for kind in ("csv", "md", "tex")} | {"cells.csv"}
    assert names < {path.name for path in folder.iterdir()}
    assert (folder / "report.html").stat().st_size < 1e6
    figures = "time differences response coefficients cosines curves".split()
    files = {f"{name}.{kind}" for name in figures for kind in ("png", "svg", "pdf")}
    assert {path.name for path in (folder / "figures").iterdir()} == files
