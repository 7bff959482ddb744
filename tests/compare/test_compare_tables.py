"""Means, spreads, shares and failures, in every kind of table."""

import csv
import io
import math

import pandas as pd
import pytest
from rich.console import Console
from running import run_toy

from fusion_plugins.cli import main
from fusion_plugins.compare import gather
from fusion_plugins.compare.columns import cells_csv, frame_csv, rows_frame
from fusion_plugins.compare.figures import draw_differences
from fusion_plugins.compare.gathering import fill_shares
from fusion_plugins.compare.latex import latex_escape, latex_table
from fusion_plugins.compare.loading import frame_of
from fusion_plugins.compare.looks import looks_of
from fusion_plugins.compare.report.summary import published
from fusion_plugins.compare.results import Comparison
from fusion_plugins.compare.tables import TableOptions, make_grid, markdown_table
from fusion_plugins.compare.terminal import terminal_tables

POOLS = {"pools": "p", "method": "m"}
DESCRIPTION = {"title": "a_title", "tasks": ["x_1", "y"], "published": None}


def record(method, seed=0, values=(0.5, 0.7), label=None, metric="accuracy", **changes):
    done = values is not None
    tasks = (
        {t: {metric: v} for t, v in zip(("x_1", "y"), values, strict=True)}
        if done
        else {}
    )
    error = {"type": "ValueError", "message": "50% of {a_b}\nwent | away"}
    return {
        "id": f"{method}-seed{seed}",
        "method": method,
        "label": label or method,
        "seed": seed,
        "status": "done" if done else "failed",
        "error": None if done else error,
        "metric": metric if done else None,
        "higher_is_better": metric != "loss" if done else None,
        "tasks": tasks,
        "average": {metric: sum(values) / 2} if done else {},
        "normalised": None,
        "normalised_average": None,
        "seconds": {"merge": 1.25, "evaluate": 2.0},
        "peak_memory_mib": {"cpu": 100.4, "cuda": None},
        "parameters": {"model": 10, "added": 12345},
        "order": 0,
        "part": None,
        "artifacts": {},
        "identity": POOLS,
        **changes,
    }


RECORDS = [
    record("awd", 0, (0.4, 0.6), label="awd (alpha=0.2)"),
    record("awd", 1, (0.5, 0.6), label="awd (alpha=0.2)"),
    record("awd", 2, (0.6, 0.6), label="awd (alpha=0.2)"),
    record("experts", 0, (0.8, 0.9)),
    record("broken", 0, None),
    record("broken", 1, None),
    record("half", 0, None),
    record("half", 1, (0.1, 0.2)),
]


def summary(records=RECORDS, **description):
    return Comparison(DESCRIPTION | description, frame_of(fill_shares(records)))


def text_of(tables, width=200) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(*tables)
    return console.export_text()


def test_mean_and_sample_standard_deviation_over_seeds():
    shown = summary()
    awd = shown.row("awd")
    assert awd.seeds == [0, 1, 2]
    assert shown.averaged(awd, "x_1").mean == pytest.approx(0.5)
    deviation = shown.averaged(awd, "x_1").deviation
    assert deviation == pytest.approx(0.1)  # not 0.0816, the population's
    assert shown.averaged(awd, "y").deviation == 0.0
    assert shown.average(awd).mean == pytest.approx(0.55)
    assert shown.average(shown.row("experts")).deviation is None


def test_shares_of_the_experts():
    shares = {r["id"]: r["normalised"] for r in fill_shares(RECORDS)}
    assert shares["experts-seed0"] == {"x_1": 1.0, "y": 1.0}
    assert shares["awd-seed0"] == {"x_1": 0.5, "y": pytest.approx(2 / 3)}
    assert shares["broken-seed0"] is None
    elsewhere = record("other", identity={"pools": "q", "method": "m"})
    assert fill_shares([*RECORDS, elsewhere])[-1]["normalised"] is None


def test_shares_where_lower_is_better_and_of_zero():
    experts = record("experts", values=(1.0, 0.0), metric="loss")
    worse = record("awd", values=(2.0, 0.0), metric="loss")
    assert fill_shares([experts, worse])[1]["normalised"] == {"x_1": 0.5}


def test_experts_come_first_and_numbers_are_percent():
    grid = markdown_table(summary()).splitlines()
    assert grid[4].startswith("| experts | 80.0 | 90.0 | 85.0 | 100.0 | 1.2 | 100 |")
    best = "| awd (alpha=0.2) | **50.0 ± 10.0** | **60.0 ± 0.0** | **55.0 ± 5.0** |"
    assert best in grid[5]  # of the merged models
    assert "| half | <ins>10.0</ins> | <ins>20.0</ins> | <ins>15.0</ins> |" in grid[7]
    assert "12,345" in grid[4]


def test_other_metrics_stay_as_they_are():
    shown = summary([record("awd", values=(1.5, 2.0), metric="loss")])
    assert not shown.scale.percent and not shown.higher_is_better
    text = markdown_table(shown)
    assert "| 1.5 | 2 | 1.75 |" in text and "loss; lower is better" in text


def test_cells_of_different_metrics_cannot_share_a_table():
    mixed = [record("a"), record("b", metric="f1")]
    with pytest.raises(ValueError, match=r"\['accuracy', 'f1'\]; give metric="):
        summary(mixed)


METRICS = {"metrics": {"x_1": "mIoU", "y": "abs_err"}, "lower_is_better": ["y"]}


def unlike(*rows, **changes):
    """A comparison of rows with their values of a share and of an error."""
    average = {"average": {"score": None}, "higher_is_better": True, **METRICS}
    found = [record(*row, metric="score", **average | changes) for row in rows]
    return Comparison(DESCRIPTION, frame_of(fill_shares(found)))


UNLIKE = [
    ("experts", 0, (0.5, 10.0)),
    ("awd", 0, (0.4, 20.0)),
    ("ties_merging", 0, (0.3, 15.0)),
    ("half", 0, (0.2, 10.0)),
]


def test_the_average_of_unlike_metrics_is_of_shares_of_the_experts():
    shown = unlike(*UNLIKE)
    awd = shown.row("awd")
    assert awd.over_seeds("normalised/x_1").mean == pytest.approx(0.4 / 0.5)
    assert awd.over_seeds("normalised/y").mean == 10 / 20  # an error: expert / model
    assert shown.average(awd).mean == pytest.approx((0.8 + 0.5) / 2)
    order = [row.label for row in shown.rows]
    assert order == ["experts", "half", "awd", "ties_merging"]  # 1, 0.7, 0.65, 0.63
    assert (shown.best().label, shown.measure) == ("half", "share of the experts")


def test_columns_of_unlike_metrics_name_them_and_their_directions():
    shown = unlike(*UNLIKE)
    text = markdown_table(shown)
    head = r"| method | x\_1 (mIoU % ↑) | y (abs\_err ↓) | average | merge s |"
    assert head in text
    assert "| experts | 50.0 | 10 | 100.0 | 1.2 |" in text
    assert "| awd | **40.0** | 20 | <ins>65.0</ins> | 1.2 |" in text
    assert "| half | 20.0 | **10** | **70.0** | 1.2 |" in text
    assert "| ties\\_merging | <ins>30.0</ins> | <ins>15</ins> |" in text
    assert "share of the experts' results in percent, over 2 tasks." in text
    assert "That of" not in text
    table = latex_table(shown, TableOptions(names={"y": "Depth"}))
    assert r"x\_1 (mIoU \% $\uparrow$) & Depth (abs\_err $\downarrow$) &" in table
    narrow = text_of(terminal_tables(shown, 200))
    assert "y (abs_err ↓)" in narrow and "↓: lower is better" in narrow
    line = next(csv.DictReader(io.StringIO(frame_csv(rows_frame(shown)))))
    assert line["metric"] == "x_1 mIoU, y abs_err" and line["y"] == "10.0"


def test_published_numbers_of_unlike_metrics_keep_their_digits():
    entry = {"label": "AWD", "method": "awd", "average": 64.0}
    entry |= {"tasks": {"x_1": 41.5, "y": 19.57}}
    shown = unlike(*UNLIKE)
    shown.about = DESCRIPTION | {"published": {"rows": [entry], "source": "A paper"}}
    shown.about["published"]["checkpoints"] = "theirs"
    assert "| AWD (published) | 41.5 | 19.57 | 64.0 |" in markdown_table(shown)
    (row,) = published(shown)["rows"]
    values = [tuple(figure.values()) for figure in row["figures"]]
    share, error = ("41.5", "40.0", "−1.5"), ("19.57", "20", "+0.43")
    assert values == [("64.0", "65.0", "+1.0"), share, error]


@pytest.mark.parametrize(("by", "first"), [("x_1", "awd"), ("y", "half")])
def test_unlike_metrics_sort_by_their_own_directions(by, first):
    grid = make_grid(unlike(*UNLIKE[1:]), TableOptions(sort=by))
    assert grid.text["method"].iloc[0] == first


def test_unlike_metrics_have_no_average_without_the_experts():
    shown = unlike(*UNLIKE[1:])
    assert shown.average(shown.row("awd")) is None
    text = markdown_table(shown)
    assert "It needs the row experts." in text
    assert "| awd | **40.0** | 20 | - | 1.2 |" in text
    assert draw_differences(shown, looks_of(shown), shown.row("awd")) is None


def test_a_task_has_one_metric_in_a_table():
    other = {"metrics": {"x_1": "mIoU", "y": "rel_err"}}
    one, two = unlike(UNLIKE[0]).cells, unlike(UNLIKE[1], **other).cells
    with pytest.raises(ValueError, match=r"\['abs_err', 'mIoU', 'rel_err', 'score'\]"):
        Comparison(DESCRIPTION, pd.concat([one, two]))


def test_failures_show_in_every_table():
    error = "ValueError: 50% of {a_b}"
    assert r"| broken | failed |" in markdown_table(summary())
    assert "Failed: broken, seeds 0, 1: ValueError: 50% of" in markdown_table(summary())
    assert r"broken & \multicolumn{7}{l}{failed} \\" in latex_table(summary())
    shown = text_of(terminal_tables(summary(), 200))
    assert "failed" in shown and f"Failed: half, seed 0: {error}" in shown
    lines = {
        line["label"]: line
        for line in csv.DictReader(io.StringIO(frame_csv(rows_frame(summary()))))
    }
    assert lines["broken"]["failed"] == "2" and error in lines["broken"]["error"]
    assert (
        lines["half"]["seeds"] == "1"
        and lines["half"]["average"] == "0.15000000000000002"
    )


def test_csv_is_exact_and_has_every_cell():
    lines = list(csv.DictReader(io.StringIO(frame_csv(rows_frame(summary())))))
    awd = next(line for line in lines if line["method"] == "awd")
    assert math.isclose(float(awd["x_1_std"]), 0.1) and awd["seeds"] == "0 1 2"
    cells = list(csv.DictReader(io.StringIO(cells_csv(summary()))))
    assert len(cells) == len(RECORDS)
    assert cells[0]["x_1/accuracy"] == "0.4" and cells[4]["x_1/accuracy"] == ""
    assert cells[4]["error"].startswith("ValueError: 50%")


def test_latex_is_escaped():
    assert latex_escape("a_b & 5% {c}~^\\ #1 $ <é±漢") == (
        r"a\_b \& 5\% \{c\}\textasciitilde{}\textasciicircum{}\textbackslash{} \#1 \$"
        r" \textless{}é$\pm$?"
    )
    table = latex_table(summary())
    assert r"method & x\_1 & y & average" in table and r"50.0$\pm$10.0" in table
    assert table.count(r"\toprule") == table.count(r"\bottomrule") == 1
    assert r"\textbf{50.0$\pm$10.0}" in table and r"\underline{10.0}" in table
    caption = (
        r"\caption{a\_title: accuracy in percent. The average is over 2 tasks. Mean"
    )
    assert f"{caption} and sample standard deviation over seeds 0, 1, 2," in table


def test_markdown_is_escaped():
    assert r"went \| away" in markdown_table(summary())
    assert r"| x\_1 |" in markdown_table(summary())


def test_a_narrow_terminal_folds_the_table_and_drops_no_task():
    wide = text_of(terminal_tables(summary(), 80), 80)
    narrow = text_of(terminal_tables(summary(), 40), 40)
    assert wide.count("experts") < narrow.count("experts")
    for text in (wide, narrow):
        assert "x_1" in text and "55.0±5.0" in text and "50.0±10.0" in text
        assert text.index("average") < text.index("x_1")
    assert max(len(line.rstrip()) for line in narrow.splitlines()) <= 40


@pytest.mark.parametrize(
    ("options", "head", "first"),
    [
        ({}, "method x_1 y average", "experts"),
        ({"sort": "average"}, "method x_1 y average", "experts"),
        ({"sort": "label"}, "method x_1 y average", "awd (alpha=0.2)"),
        (
            {"tasks": ["y"], "columns": ["average", "tasks"]},
            "method average y",
            "experts",
        ),
        ({"columns": ["merge_seconds", "x_1"]}, "method merge_seconds x_1", "experts"),
    ],
)
def test_rows_and_columns_that_were_asked_for(options, head, first):
    grid = make_grid(summary(), TableOptions(**options))
    assert " ".join(grid.text.columns[:4]).startswith(head)
    assert grid.text["method"].iloc[0] == first


def test_sorted_rows_are_the_best_first_whatever_the_direction():
    rows = [("a", 0, (0.1, 0.2)), ("b", 0, (0.1, 0.4)), ("c", 0, None)]
    for metric, want in (("accuracy", "bac"), ("loss", "abc")):
        found = summary([record(*row, metric=metric) for row in rows])
        grid = make_grid(found, TableOptions(sort="y"))
        assert "".join(grid.text["method"]) == want


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["z"]}, "tasks: there is no 'z', only x_1, y."),
        ({"columns": ["averag"]}, "there is no 'averag'.*Did you mean 'average'?"),
        ({"sort": "worst"}, "sort: there is no 'worst'"),
        ({"columns": "average"}, "columns is 'average', expected a list of names"),
        ({"split": 0}, "split is 0, expected a whole number >= 1"),
    ],
)
def test_wrong_table_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_grid(summary(), TableOptions(**options))


def test_an_average_over_fewer_tasks_is_said():
    alone = record("experts", 0, (0.8, 0.9))
    alone |= {"tasks": {"y": {"accuracy": 0.9}}, "average": {"accuracy": 0.9}}
    text = markdown_table(summary([*RECORDS[:3], alone]))
    assert "The average is over 2 tasks." in text
    assert "That of experts is over 1 of them." in text
    assert "That of" not in markdown_table(summary())


@pytest.mark.parametrize(
    ("values", "metric", "doubtful"),
    [
        ((0.1, 0.9), "accuracy", True),
        ((0.6, 0.95), "accuracy", False),
        ((0.6, 0.9), "loss", True),
        ((0.4, 0.9), "loss", False),
    ],
)
def test_experts_that_know_less_than_the_pretrained_are_named(values, metric, doubtful):
    rows = [
        record("pretrained", 0, (0.5, 0.9), metric=metric),
        record("experts", 0, values, metric=metric),
    ]
    said = "Worse than the pretrained model are the experts on x_1: do the classes"
    notes = markdown_table(summary(rows)).replace("\\", "")
    assert (said in notes) == doubtful


def test_a_long_latex_table_goes_on_below():
    table = latex_table(summary(), TableOptions(split=3, names={"x_1": "X", "y": "Y"}))
    assert table.count(r"\begin{tabular}{lrrr}") == 2  # 7 columns: 3 + 3 + 1
    assert table.count(r"\begin{tabular}") == 3 and table.count(r"\begin{table}") == 1
    assert "method & X & Y & average" in table


def test_what_cannot_be_distinguished_is_marked_in_every_table():
    shown = summary()
    shown.cells["same/average"] = shown.cells["label"] == "half"
    for name in ("difference", "low", "high"):
        shown.cells[f"{name}/average"] = 0.0
    shown = Comparison(shown.about, shown.cells)
    note = "≈: not distinguishable."
    assert "<ins>15.0≈</ins>" in markdown_table(shown) and note in markdown_table(shown)
    assert r"\underline{15.0$\approx$}" in latex_table(shown)
    assert "15.0≈" in text_of(terminal_tables(shown, 200))
    assert note not in markdown_table(summary())


def test_published_numbers_stand_below_and_name_their_source():
    published = {
        "source": "A paper",
        "checkpoints": "theirs",
        "differs": ["everything"],
        "rows": [
            {"label": "AWD", "method": "awd", "tasks": {"y": 12.3}, "average": 45.6},
            {"label": "Other", "method": None, "tasks": None, "average": 7.0},
        ],
    }
    shown = summary(published=published)
    text = markdown_table(shown)
    assert "| AWD (published) | - | 12.3 | 45.6 | - |" in text
    assert "| Other (published) | - | - | 7.0 | - |" in text
    for note in ("Published numbers: A paper.", "theirs", "Differs: everything."):
        assert note in text and note in text_of(terminal_tables(shown, 200))
    assert latex_table(shown).count(r"\midrule") == 2


def test_the_gather_command(monkeypatch, tmp_path, capsys):
    run_toy(monkeypatch, tmp_path, "experts", "DrawWeights", "Broken", seeds=[0, 1])
    names = "results.csv cells.csv results.md results.tex".split()
    texts = {name: (tmp_path / name).read_text() for name in names}
    for name in names:
        (tmp_path / name).unlink()
    capsys.readouterr()
    monkeypatch.undo()  # with the report, too
    assert main(["compare", "gather", str(tmp_path)]) == 0
    assert {name: (tmp_path / name).read_text() for name in names} == texts
    assert "DrawWeights" in (tmp_path / "report.html").read_text()
    assert "DrawWeights" in capsys.readouterr().out
    assert gather(tmp_path).tasks == ["left", "right"]
    assert main(["compare", "gather", str(tmp_path / "cells")]) == 2
    assert "holds no results of a comparison" in capsys.readouterr().err
