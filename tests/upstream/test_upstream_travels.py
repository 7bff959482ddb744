"""Exported methods in a copy of FusionBench where this project cannot be imported."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import isort
import pytest
import torch
from isolated_merge import CONFIGS, PACKAGES, RUNS, merge, prove_isolation
from release_copy import (
    SITE,
    contents,
    copy_release,
    link_other_packages,
    run_isolated,
    upstream_config,
)
from safetensors.torch import load_file

from tools.upstream.__main__ import main
from tools.upstream.export import export
from tools.upstream.listing import with_export
from tools.upstream.methods import METHODS

pytestmark = pytest.mark.slow

HOMES = {name: method.home for name, method in METHODS.items()}
CLASSES = {name: method.class_name for name, method in METHODS.items()}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The release with every method exported to it."""
    root = copy_release(tmp_path_factory.mktemp("release"))
    for name in METHODS:
        assert main([str(root), "--method", name]) == 0
    return root


@pytest.fixture(scope="module")
def outcome(copy, tmp_path_factory) -> Path:
    """What one isolated process says of tests and merges."""
    folder = tmp_path_factory.mktemp("isolated")
    script = shutil.copy(Path(__file__).with_name("isolated_merge.py"), folder)
    packages = link_other_packages(folder / "packages")
    run_isolated(copy, packages, script, copy, folder, json.dumps(HOMES))
    return folder


def exported(copy: Path) -> list[str]:
    """Files that the release itself does not have."""
    before = {f"fusion_bench/{p}" for p in contents(SITE / "fusion_bench")}
    before |= {f"config/{p}" for p in contents(upstream_config())}
    return sorted(contents(copy).keys() - before - {"mkdocs.yml"})


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_travelling_test_passes_there(outcome, name):
    result = json.loads((outcome / "tests.json").read_text())[name]
    assert result["problems"] == []
    assert result["run"] >= 10


def test_the_proof_of_isolation_fails_here():
    with pytest.raises(AssertionError, match="fusion_plugins can be imported"):
        prove_isolation(SITE)


@pytest.mark.parametrize("run", sorted(RUNS))
def test_the_merged_weights_are_the_same_bit_for_bit(outcome, run):
    here = merge(run, CONFIGS[run], upstream_config(), "fusion_plugins")
    there = load_file(outcome / "merged.safetensors")
    there = {k: v for k, v in there.items() if k.startswith(f"{run}/")}
    assert there.keys() == here.keys()
    assert len(here) >= 6
    for name, value in here.items():
        assert torch.equal(there[name], value), name


def test_every_run_merges_something_else(outcome):
    merged = load_file(outcome / "merged.safetensors")
    layers = [v for k, v in merged.items() if k.endswith("0.weight")]
    assert len(layers) == len(RUNS) == len(PACKAGES)
    for index, layer in enumerate(layers):
        assert not any(torch.equal(layer, other) for other in layers[index + 1 :])


def test_exported_files_are_formatted(copy):
    files = [path for path in exported(copy) if path.endswith(".py")]
    assert len(files) > 40
    black = [sys.executable, "-m", "black", "--check", "--line-length", "88"]
    sort = [sys.executable, "-m", "isort", "--profile", "black", "--check-only"]
    # The release's own list is not sorted; that our lines are is tested below.
    for command in ([*black, "fusion_bench/method/__init__.py"], sort):
        command += files
        run = subprocess.run(command, cwd=copy, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_import_is_put_where_isort_would_put_it(name):
    source = (SITE / "fusion_bench" / "method" / "__init__.py").read_text()
    settings = isort.Config(profile="black")
    clean = isort.code(source, config=settings)
    listed = with_export(clean, METHODS[name])
    assert isort.code(listed, config=settings) == listed
    assert listed.count(f'"{HOMES[name]}": ["{CLASSES[name]}"],') == 1
    assert listed.count(f"from .{HOMES[name]} import {CLASSES[name]}") == 1


def test_each_method_is_laid_out_as_those_of_fusionbench(copy):
    files = exported(copy)
    for home in HOMES.values():
        assert f"fusion_bench/method/{home}/algorithm.py" in files
        assert f"docs/algorithms/{home}.md" in files
        assert f"tests/test_{home}.py" in files
        assert any(path.startswith(f"config/method/{home}/") for path in files)


def test_exporting_again_changes_nothing(copy):
    for method in METHODS.values():
        assert export(copy, method) == {}
