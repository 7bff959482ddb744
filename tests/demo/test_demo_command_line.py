import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fusion_plugins.cli import main


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
    options = ["demo", "build", "--data", str(folder), "--out", str(out), *small]
    assert main([*options, "--tasks", "a", "--other", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "pretrained" in said and "experts" in said
    assert f"modelpool=demo modelpool.root={out}" in said
    assert f"taskpool=demo taskpool.root={out}" in said
    description = json.loads((out / "pool.json").read_text())
    assert description["recipe"]["seed"] == 3 and list(description["tasks"]) == ["a"]
    assert main(options) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err


def test_run_is_a_comparison(tiny_pool_root, tmp_path, capsys):
    methods = "pretrained,experts,simple_average"
    out = tmp_path / "results"
    options = ["--root", str(tiny_pool_root), "--out", str(out), "--methods", methods]
    assert main(["demo", "run", *options]) == 0
    said = capsys.readouterr().out
    built = json.loads((tiny_pool_root / "pool.json").read_text())["accuracy"]
    for row in ("pretrained", "experts"):
        (file,) = (out / "cells").glob(f"{row}*.json")
        tasks = json.loads(file.read_text())["tasks"]
        for task, value in built[row].items():
            assert tasks[task]["accuracy"] == pytest.approx(value)
            assert f"{100 * value:.1f}" in said
    lines = said.splitlines()
    assert lines[-1] == str(out / "report.html") and (out / "report.html").is_file()
    assert any(line.startswith("simple_average merges best: ") for line in lines)
    (heading,) = (at for at, line in enumerate(lines) if "digits" in line)
    assert lines[heading].split()[:3] == ["method", "average", "digits"]
    assert max(map(len, lines[heading:-1])) <= 80


def test_help_and_lists_are_fast(tmp_path):
    """Nothing but running a command imports torch."""
    code = "import sys; from fusion_plugins.cli import main; main(sys.argv[1:])"
    for words in (["pools"], ["cite"]):
        check = f"{code}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", check, *words]).returncode == 0
    program = [sys.executable, "-X", "importtime", "-m", "fusion_plugins.cli"]
    done = subprocess.run([*program, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "usage: fusion-plugins" in done.stdout
    assert "argparse" in done.stderr and "torch" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["demo"],
        ["demo", "build"],
        ["demo", "run"],
        ["compare"],
        ["doctor"],
        ["completion"],
    ],
)
def test_help(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    assert f"usage: {' '.join(['fusion-plugins', *words])}" in capsys.readouterr().out


def test_pools_lists_what_modelpool_takes(capsys):
    assert main(["pools"]) == 0
    said = capsys.readouterr().out
    assert "demo-text             Text experts that you fine-tuned" in said
    assert "clip-vit-b32_TA8      CLIP ViT-B/32 and its experts" in said


def test_cite_prints_the_papers_and_this_software(capsys):
    assert main(["cite"]) == 0
    said = capsys.readouterr().out
    for mark in ("2310.02575", "2411.18729", "2412.19098", "@software{fusion_plugins"):
        assert said.count(mark) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("demo build --data {tmp}/empty", "--data and --other need --out"),
        ("demo build --other {tmp}/empty", "--data and --other need --out"),
        ("demo build --data {tmp}/none --out {tmp}/out", "none is not a folder"),
        ("demo build --data {tmp}/empty --out {tmp}/out", "has no .npz files"),
        ("demo build --other {tmp}/empty --out {tmp}/out", "has no .npz files"),
        ("demo build --tasks cats --out {tmp}/out", "unknown built-in tasks ['cats']"),
        ("demo build --width 30 --out {tmp}/out", "must be multiples of the 4 attent"),
        ("demo build --expert-steps 0", "expert_steps is 0, expected a whole number"),
        ("demo build --seed 4294967296", "expected a whole number >= 0 and < 2^32"),
        ("demo build --seed -1", "seed is -1, expected a whole number >= 0"),
        ("demo build-openclip --seed -1", "seed is -1, expected a whole number >= 0"),
        ("demo run --seed -1", "seed is -1, expected a whole number >= 0"),
        ("demo build --expert-lr nan", "expert_lr is nan, expected a number in (0"),
        ("demo build --expert-lr inf", "expert_lr is inf, expected a number in (0"),
        ("demo build --out {tmp}/file", "file exists and is not an empty folder"),
        ("demo build --out {tmp}/file/deeper", "cannot create"),
        ("demo build --out {tmp}/dangling", "dangling is a link; give the new folder"),
        ("demo build --out {tmp}/linked", "linked is a link; give the new folder"),
        ("demo build --out {tmp}/full", "full exists and is not an empty folder"),
        ("demo build-resnet --out {tmp}/dangling", "dangling is a link"),
        ("demo build-resnet --data {tmp}/file --out {tmp}/out", "is not a folder"),
        ("demo build-openclip --out {tmp}/dangling", "dangling is a link"),
        (
            "demo build-openclip --from {tmp}/empty --out {tmp}/out",
            "is not a demo pool",
        ),
        ("demo build-openclip --from {tmp}/empty", "--from needs --out"),
        ("demo run --root {tmp}/empty", "is not a demo pool (it has no pool.json)"),
        (
            "demo run --root {pool} --methods magic",
            "methods holds 'magic', which is no",
        ),
        ("demo run --root {pool} --out {tmp}/file", "file"),
        ("demo run --root {pool} --out {tmp}/dangling", "dangling"),
        ("compare gather {tmp}/empty", "holds no results of a comparison"),
        ("convert {tmp}/empty", "There is no .pt file"),
        ("convert {tmp}/none.pt", "none.pt"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, tmp_path, tiny_pool_root, capsys):
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "linked").symlink_to(tmp_path / "empty")
    words = arguments.format(tmp=tmp_path, pool=tiny_pool_root).split()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and said.startswith("error: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: command"),
        (["bake"], "invalid choice: 'bake'"),
        (["demo", "build", "--width", "big"], "--width: invalid int value: 'big'"),
        (["demo", "build", "--wdth", "8"], "unrecognized arguments: --wdth 8"),
        (["demo", "build", "--wid", "8"], "unrecognized arguments: --wid 8"),
        (["demo", "build", "--out", ""], "--out: the path is empty"),
        (["demo", "build-text", "--encoder", "", "--out", "x"], "--encoder: the path"),
        (["demo", "run", "--root", ""], "--root: the path is empty"),
        (["demo", "run", "--methods", ","], "--methods: give names separated by"),
        (["compare", "gather", ""], "results: the path is empty"),
        (["convert", ""], "IN: the path is empty"),
    ],
)
def test_wrong_usage_is_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and said.startswith("error: ")


def test_the_whole_error_is_shown_on_request(monkeypatch, tmp_path):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="is not a demo pool"):
        main(["demo", "run", "--root", str(tmp_path)])


def test_a_damaged_pool_is_named(tiny_pool_root, tmp_path, capsys):
    root = tmp_path / "pool"
    shutil.copytree(tiny_pool_root, root)
    (root / "data" / "digits.npz").write_bytes(b"PK")
    methods = ["--methods", "pretrained", "--out", str(tmp_path / "out")]
    assert main(["demo", "run", "--root", str(root), *methods]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {root / 'data' / 'digits.npz'}: not a .npz file")
