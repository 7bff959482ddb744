"""The response of a result to an option."""

import pandas as pd
import pytest
from running import ToyMethods, make_method, run_toy

from fusion_plugins.cli import main
from fusion_plugins.compare import load_results, sweep
from fusion_plugins.compare.sweep import sweep_points


class Sweep(ToyMethods):
    """Rows that differ in two options."""

    def __init__(self, *names):
        self.points = [(0.1, 1), (0.2, 1), (0.4, 1), (0.1, 2), (0.2, 2)]

    def __call__(self, listed, common):
        rows = [
            make_method("Scaled", scaling=scaling, power=power)
            for scaling, power in self.points
        ]
        return [make_method("experts"), *rows]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("running.ToyMethods", Sweep)
        run_toy(patch, folder, seeds=[0, 1])
    return folder


def test_one_line_for_each_setting_of_the_other_options(swept):
    cells = load_results(swept)
    lines = dict(list(sweep_points(cells, "scaling").groupby("line")))
    assert set(lines) == {"Scaled (power=1)", "Scaled (power=2)"}
    points = lines["Scaled (power=2)"]
    assert points["scaling"].tolist() == [0.1, 0.1, 0.2, 0.2]  # two seeds
    assert points["result"].tolist() == pytest.approx([0.01, 0.01, 0.04, 0.04])
    left = sweep_points(cells, "scaling", "left")
    assert left["result"].max() == pytest.approx(0.4)


def test_without_the_experts_unlike_metrics_have_no_average():
    record = {
        "config": {"scaling": 1},
        "overrides": {},
        "method": "m",
        "metric": "score",
    }
    record |= {"tasks": {"a": {"score": 0.5}}, "average": {"score": None}}
    cells = pd.DataFrame({"record": [record]})
    assert sweep_points(cells, "scaling", "a")["result"].tolist() == [0.5]
    with pytest.raises(ValueError, match="run experts in the same folder, or give a"):
        sweep_points(cells, "scaling")


def test_a_cell_without_a_config_has_no_value_of_an_option():
    cells = pd.DataFrame({"record": [{"config": None}]})
    assert sweep_points(cells, "scaling").empty


def test_the_command_draws_a_picture(swept, capsys):
    assert main(["compare", "sweep-plot", str(swept), "--x", "scaling", "--log"]) == 0
    picture = swept / "sweep_scaling.png"
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5000
    assert str(picture) in capsys.readouterr().out
    options = ["--x", "power", "--method", "Scaled", "--out", str(swept / "p.svg")]
    assert main(["compare", "sweep-plot", str(swept), *options]) == 0
    assert "<svg" in (swept / "p.svg").read_text()


@pytest.mark.parametrize(("shift", "said"), [(0, False), (0.1, True)])
def test_what_a_logarithmic_axis_leaves_out_is_said(
    swept, tmp_path, monkeypatch, caplog, shift, said
):
    points = sweep_points(load_results(swept), "scaling")
    points["scaling"] -= shift
    monkeypatch.setattr(sweep, "sweep_points", lambda *_: points)
    sweep.plot_sweep(swept, "scaling", logarithmic=True, out=tmp_path / "p.png")
    message = "scaling: a logarithmic axis leaves out values of 0 and below"
    assert (message in caplog.messages) == said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--x", "scalin"], "Did you mean 'scaling'?"),
        (["--x", "scaling", "--method", "experts"], "fewer than two finished cells"),
        (["--x", "scaling", "--method", "scaled"], "methods: ['Scaled', 'experts']."),
        (["--x", "scaling", "--task", "up"], "no task 'up'; tasks: ['left', 'right']"),
    ],
)
def test_mistakes_end_with_a_message(swept, capsys, options, message):
    assert main(["compare", "sweep-plot", str(swept), *options]) == 2
    assert message in capsys.readouterr().err
