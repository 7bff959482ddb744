import json
import sys

import numpy as np
import pytest

from fusion_plugins.demo import measure as measuring
from fusion_plugins.demo.__main__ import main


def npz_folder(folder):
    folder.mkdir()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 12, 12), dtype=np.uint8)
    labels = np.arange(20) % 2
    for name in ("a", "b"):
        np.savez(
            folder / f"{name}.npz",
            x_train=images,
            y_train=labels,
            x_test=images,
            y_test=labels,
            class_names=np.array(["cat", "dog"]),
        )
    return folder


def test_build_prints_the_table_and_how_to_use_the_pool(tmp_path, capsys):
    folder, out = npz_folder(tmp_path / "in"), tmp_path / "out"
    small = "--pretrain-steps 2 --expert-steps 2 --width 16 --depth 1 --seed 3".split()
    options = ["build", "--data", str(folder), "--out", str(out), *small]
    assert main([*options, "--tasks", "a", "--other", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "pretrained" in said and "experts" in said
    assert f"modelpool=demo modelpool.root={out}" in said
    assert f"taskpool=demo taskpool.root={out}" in said
    description = json.loads((out / "pool.json").read_text())
    assert description["recipe"]["seed"] == 3 and list(description["tasks"]) == ["a"]
    assert main(options) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err


def test_run_measures_prints_and_saves(tiny_pool_root, tmp_path, capsys):
    methods = "pretrained,experts,simple_average"
    out = tmp_path / "results"
    options = ["--root", str(tiny_pool_root), "--out", str(out), "--methods", methods]
    assert main(["run", *options]) == 0
    said = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert list(results) == methods.split(",")
    built = json.loads((tiny_pool_root / "pool.json").read_text())["accuracy"]
    for row in ("pretrained", "experts"):
        for task, value in built[row].items():
            assert results[row][task] == pytest.approx(value)
        assert f"{100 * results[row]['average']:.1f}" in said
    assert (out / "accuracy.png").stat().st_size > 1000
    assert "Evaluating" not in said and str(out / "results.json") in said


def test_a_new_method_is_one_entry(tiny_pool_root, monkeypatch):
    monkeypatch.setitem(
        measuring.METHODS, "first", lambda pool: pool.load_model(pool.model_names[0])
    )
    results = measuring.measure(tiny_pool_root, methods=["first", "experts"])
    assert list(results) == ["experts", "first"]
    assert results["first"]["digits"] == results["experts"]["digits"]


@pytest.mark.parametrize("arguments", [["--help"], ["build", "--help"], ["run", "-h"]])
def test_help(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    assert "usage: python -m fusion_plugins.demo" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("build --data {tmp}", "--data needs --out"),
        ("build --data {tmp}/none --out {tmp}/out", "is not a folder"),
        ("build --data {tmp} --out {tmp}/out", "has no .npz files"),
        ("build --tasks cats --out {tmp}/out", "unknown built-in tasks ['cats']"),
        ("build --width 30 --out {tmp}/out", "must be multiples of the 4 attention"),
        ("build --expert-steps 0", "expert_steps must be above 0"),
        ("build --other {tmp}", "has no .npz files"),
        ("run --root {tmp}", "is not a demo pool"),
        ("run --methods magic", "unknown methods ['magic']; available: ['pretrained'"),
    ],
)
def test_wrong_input_ends_with_a_message(arguments, message, tmp_path, capsys):
    assert main(arguments.format(tmp=tmp_path).split()) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


@pytest.mark.parametrize("arguments", [[], ["bake"], ["build", "--width", "big"]])
def test_wrong_usage_ends_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_quiet_hides_upstream_but_stays_a_file(capsys):
    with measuring.quiet():
        sys.stdout.write("chatter")
        sys.stderr.write("chatter")
        assert sys.stdout.fileno() >= 0  # FusionBench asks for it
    said = capsys.readouterr()
    assert "chatter" not in said.out + said.err
