"""Rows at a setting that is chosen for them; the user's logger."""

import csv

import pytest
from running import make_method, make_program, read_cells

from fusion_plugins import load_results
from fusion_plugins.compare.cells import with_choices
from fusion_plugins.compare.methods import read_methods


def test_methods_with_a_free_scaling_are_chosen_for():
    listed = ["simple_average", "awd", {"ties_merging": {"scaling_factor": 0.2}}]
    average, awd, oracle, ties = with_choices(read_methods(listed), "val", True)
    assert (average.label, awd.label) == ("simple_average", "awd (select=val)")
    assert oracle.label == "awd (select=oracle)" and oracle.config.max_samples is None
    assert ties.label == "ties_merging (scaling_factor=0.2)"
    assert awd.config.base.base.scaling_factor == 0.3 and awd.config.score == "val"


@pytest.mark.parametrize(
    ("select", "oracle", "message"),
    [("test", False, "select is 'test'"), (None, "yes", "oracle is 'yes'")],
)
def test_other_choices_are_refused(select, oracle, message):
    with pytest.raises(ValueError, match=message):
        with_choices([make_method("pretrained")], select, oracle)


@pytest.mark.slow
def test_choices_oracles_and_the_users_logger(
    tiny_pool_root, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("fusion_plugins.compare.gathering._write_report", lambda *_: 0)
    pools = ("modelpool", "taskpool")
    tiny = [f"{p}=demo" for p in pools] + [f"{p}.root={tiny_pool_root}" for p in pools]
    logger = "{_target_: lightning.fabric.loggers.CSVLogger, name: all, version: one"
    make_program(
        tmp_path,
        *tiny,
        *(f"{pool}.tasks=[digits,colours]" for pool in pools),
        "methods=[simple_average,task_arithmetic]",
        "select=agreement",
        "oracle=true",
        f"+fabric.loggers={logger}, root_dir: {tmp_path}}}",
    ).run()
    label = "task_arithmetic (select=agreement)"
    cells = {c["label"]: c for c in read_cells(tmp_path / "results").values()}
    oracle = cells["task_arithmetic (select=oracle)"]
    response, best = (c["artifacts"]["selection"] for c in (cells[label], oracle))
    assert (response["score"], best["score"]) == ("agreement", "oracle")
    assert len(response["candidates"]) >= 10
    assert cells[label]["samples"]["adapted"] > 10 * 90  # dropped early at a quarter
    assert best["data"] == "test" and best["candidates"][0]["samples"]["digits"] <= 120
    chosen = next(c for c in best["candidates"] if c["options"] == best["chosen"])
    assert oracle["average"]["accuracy"] == pytest.approx(chosen["mean"], abs=1e-6)
    said = " ".join(capsys.readouterr().out.split())
    scaling = response["chosen"]["scaling_factor"]
    assert f"Chosen for {label}: scaling_factor={scaling}." in said
    assert "upper bounds, no methods" in said and "oracle) +" not in said
    with open(tmp_path / "all/one/metrics.csv") as file:
        (logged,) = csv.DictReader(file)
    average = load_results(tmp_path / "results").set_index("label")["average/accuracy"]
    assert float(logged[f"{label}/average"]) == pytest.approx(average[label])
