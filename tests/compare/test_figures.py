"""What the figures of a comparison show, read back from matplotlib."""

import numpy as np
import pytest
from sample_results import METHODS, TASKS, sample_selection, write_sample

from fusion_plugins.common import CYCLE
from fusion_plugins.compare.looks import colour_of, looks_of, short_names
from fusion_plugins.compare.pictures import baseline_of, draw_pictures
from fusion_plugins.compare.results import Comparison

SELECT = ("select", {"base": "awd"}, 0.66, 9.0, False, False, False)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures") / "results"
    return Comparison.read(write_sample(folder, methods=(*METHODS, SELECT), layers=12))


@pytest.fixture(scope="module")
def figures(found):
    return {p.name: p.figure for p in draw_pictures(found, baseline_of(found))}


def lines_of(axes, look):
    return [line for line in axes.lines if line.get_gid() == look.group]


def test_time_has_every_merged_row_at_its_seconds_and_average(found, figures):
    axes = figures["time"].axes[0]
    containers = axes.containers
    got = {tuple(np.ravel(c.lines[0].get_xydata()).round(6)) for c in containers}
    merged = [row for row in found.finished if not row.is_reference]
    places = [(row.over_seeds("seconds/merge"), found.average(row)) for row in merged]
    want = {(round(s.mean, 6), round(100 * a.mean, 6)) for s, a in places}
    assert got == want and axes.get_xscale() == "log"


def test_differences_are_those_of_the_means(found, figures):
    rows = {row.label: row for row in found.rows}
    row, base = rows["tinting_pp"], rows["simple_average"]
    (line,) = lines_of(figures["differences"].axes[0], looks_of(found)[row.number])
    want = [found.average(row).mean - found.average(base).mean] + [
        found.averaged(row, task).mean - found.averaged(base, task).mean
        for task in TASKS
    ]
    assert line.get_xdata() == pytest.approx(100 * np.array(want))
    ticks = [t.get_text() for t in figures["differences"].axes[0].get_yticklabels()]
    assert ticks == ["average", *TASKS]


def test_coefficients_of_all_methods_share_one_scale(figures):
    images = [image for axes in figures["coefficients"].axes for image in axes.images]
    assert len(images) == 2 and len({image.get_clim() for image in images}) == 1


def test_cosines_before_merging_stand_once(figures):
    titles = [axes.get_title() for axes in figures["cosines"].axes if axes.images]
    names = [title.splitlines()[0] for title in titles]
    assert names == ["before", "AWD (alpha=0.2, scale_free=True)", "AWD"]


def test_the_chosen_point_of_a_selection_is_a_star(figures):
    (axes,) = figures["response"].axes
    (star,) = (line for line in axes.lines if line.get_marker() == "*")
    record = sample_selection()
    best = next(c for c in record["candidates"] if c["options"] == record["chosen"])
    assert star.get_xydata().tolist() == [[0.3, best["mean"]]]


def test_a_methods_name_fixes_its_colour(found):
    looks = {look.row.label: look for look in looks_of(found).values()}
    one, other = looks["awd"], looks["awd (alpha=0.2, scale_free=True)"]
    assert one.line["color"] == other.line["color"] == colour_of("awd") == CYCLE[1]
    assert one.dot["marker"] != other.dot["marker"]
    assert colour_of("wudi/wudi") == CYCLE[2] and colour_of("pretrained") == "#757d8c"


def test_short_names_stay_different():
    names = [
        "dare/ties_merging",
        "ties_merging (k=1)",
        "x/ties_merging",
        "cars",
        "Cars",
    ]
    want = ["DARE/TIES", "TIES (k=1)", "x/TIES", "cars", "Cars"]
    assert short_names(names) == want
    assert short_names(["stanford-cars", "Cars"]) == ["stanford-cars", "Cars"]
    assert short_names(["a" * 60], {"b": "c"}) == ["a" * 43 + "…"]


@pytest.mark.parametrize(
    ("named", "want"),
    [(None, "simple_average"), ("awd", "awd"), ("wudi/wudi", "simple_average")],
)
def test_the_baseline_is_the_one_that_is_named_and_has_results(found, named, want):
    other = Comparison({**found.about, "baseline": named}, found.cells)
    assert baseline_of(other).label == want
