"""What an export copies, rewrites, lists and refuses."""

import ast
import shutil
from pathlib import Path

import pytest
import yaml
from release_copy import contents

from tools.upstream.checkout import find_checkout
from tools.upstream.export import export
from tools.upstream.methods import METHODS, ExportError, find_method
from tools.upstream.sources import CORE, Sources

ROOT = Path(__file__).parents[2]
CORE_FOLDER = CORE.replace(".", "/")


@pytest.fixture
def run(release):
    """Work out an export and write it; what was planned comes back."""

    def run(name="awd", home=None, force=False, sources=None):
        method = find_method(name, home)
        planned, removals = export(
            find_checkout(release), method, sources or Sources(), force
        )
        planned.apply()
        for path in removals:
            path.unlink()
        return planned

    return run


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of what an export reads, to be changed."""
    root = tmp_path / "project"
    for folder in ("fusion_plugins", "config", "docs/algorithms", "tests/awd"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, root / folder, ignore=ignored)
    return root


def modules_of(release: Path) -> set[str]:
    core = release / CORE_FOLDER
    return {p.relative_to(core).as_posix() for p in core.rglob("*.py")}


def test_awd_is_a_small_folder(run, release):
    """Task vectors, pools and the maths; no test-time engine, no OpenCLIP."""
    run("awd")
    modules = modules_of(release)
    assert 20 < len(modules) + 1 <= 30  # and the package that names the class
    rooms = {module.partition("/")[0] for module in modules}
    assert rooms == {
        "__init__.py",
        "awd",
        "common",
        "merged",
        "modelpool",
        "pools",
        "task_vectors",
    }
    assert not any("openclip" in module or "families" in module for module in modules)


def statements(text: str) -> list[str]:
    """All but imports, which are sorted another way there, and names in messages."""
    body = ast.parse(text).body
    kept = [n for n in body if not isinstance(n, (ast.Import, ast.ImportFrom))]
    for old in (CORE, "fusion_bench.method"):
        kept = [ast.dump(n) if isinstance(n, ast.AST) else n for n in kept]
        kept = [n.replace(old, "fusion_plugins") for n in kept]
    return kept


def test_files_are_copies(run, release):
    run("awd")
    for module in sorted(modules_of(release) - {"__init__.py"}):
        here = (ROOT / "fusion_plugins" / module).read_text()
        _, _, there = (release / CORE_FOLDER / module).read_text().partition("\n")
        assert statements(there) == statements(here), module


def test_several_methods_share_one_core(run, release):
    run("awd")
    before = modules_of(release)
    run("tinting")
    assert before < modules_of(release)
    init = (release / "fusion_bench/method/tinting/__init__.py").read_text()
    assert "from ..adaptive_merging.tinting.algorithm import TintingAlgorithm" in init


@pytest.mark.parametrize("name", sorted(METHODS))
def test_no_other_word_of_this_project(run, release, name):
    planned = run(name)
    assert planned.notes == []
    for path in planned.writes:
        first, _, rest = path.read_text().partition("\n")
        if path.name not in ("mkdocs.yml",) and path != find_checkout(release).exports:
            assert "Source: fusion-plugins " in first
        assert "fusion_plugins" not in rest and "fusion-plugins" not in rest, path


def test_configs_compose_from_the_methods_folder(run, release):
    run(home="mine")
    folder = release / "config" / "method" / "mine"
    assert sorted(p.name for p in folder.iterdir()) == ["awd.yaml", "disentangle.yaml"]
    text = (folder / "awd.yaml").read_text()
    config = yaml.safe_load(text)
    assert config["_target_"] == "fusion_bench.method.AWDAlgorithm"
    assert config["defaults"][:2] == [
        "/method/mine/disentangle@_here_",
        {"/method@base": "task_arithmetic"},
    ]
    pools = "modelpool=CLIPVisionModelPool/clip-vit-base-patch32_TA8"
    assert f"fusion_bench method=mine/awd {pools} " in text


def test_a_config_may_build_on_another(run, release):
    run("adamerging")
    folder = release / "config" / "method" / "unified_adamerging"
    config = yaml.safe_load((folder / "adamerging_pp.yaml").read_text())
    assert config["defaults"][0] == "/method/unified_adamerging/adamerging@_here_"


def test_lists_get_one_line_each(run, release):
    run()
    before = contents(release)
    run(force=True)
    assert contents(release) == before
    text = (release / "fusion_bench" / "method" / "__init__.py").read_text()
    assert text.count('    "awd": ["AWDAlgorithm"],\n') == 1
    assert text.count("    from .awd import AWDAlgorithm\n") == 1
    nav = (release / "mkdocs.yml").read_text()
    merging, _ = yaml.safe_load(nav)["nav"][0]["Algorithms"]
    assert merging["Model Merging"][-1] == {"AWD": "algorithms/awd.md"}
    assert "# - a page that is not written yet" in nav


def test_an_export_again_needs_force_and_removes_what_is_gone(run, release, project):
    (project / "config" / "method" / "awd_old.yaml").write_text(
        "defaults:\n  - awd\n  - _self_\nalpha: 1.0\n"
    )
    run(sources=Sources(project))
    old = release / "config" / "method" / "awd" / "awd_old.yaml"
    assert old.is_file()
    before = contents(release)
    with pytest.raises(ExportError, match="is there already.*Replace it with --force"):
        run()
    assert contents(release) == before
    run(force=True)
    assert not old.exists()


def test_files_of_others_are_never_overwritten(run, release):
    own = release / "fusion_bench" / "method" / "awd" / "__init__.py"
    own.parent.mkdir()
    own.write_text("# FusionBench's own\n")
    before = contents(release)
    for force in (False, True):
        with pytest.raises(ExportError, match="awd/__init__.py did not come from an"):
            run(force=force)
    assert contents(release) == before
    run(home="awd_too")
    assert own.read_text() == "# FusionBench's own\n"


def test_a_failed_write_leaves_nothing_behind(run, release):
    (release / "tests").rmdir()
    (release / "tests").write_text("a file where a folder should be")
    before = contents(release)
    with pytest.raises(OSError):
        run()
    assert contents(release) == before


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "fusion_bench/method/__init__.py",
            "_import_structure = {",
            "_structure = {",
            r"method/__init__.py has no `_import_structure = \{...\}`",
        ),
        (
            "fusion_bench/method/__init__.py",
            "if TYPE_CHECKING:",
            "if False:",
            "method/__init__.py has no `if TYPE_CHECKING:` block",
        ),
        (
            "mkdocs.yml",
            "- Model Merging:",
            "- Merging:",
            "mkdocs.yml has no section `- Model Merging:`",
        ),
    ],
)
def test_a_list_that_is_elsewhere_is_named(run, release, file, old, new, message):
    path = release / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    before = contents(release)
    with pytest.raises(ExportError, match=message):
        run()
    assert contents(release) == before


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "config/method/awd_more.yaml",
            "defaults:\n  - awd\n  - gone\n",
            "awd_more.yaml builds on method/gone.yaml",
        ),
        (
            "tests/awd/test_awd_algorithm.py",
            "import unittest\nimport pytest\n",
            "test_awd_algorithm.py cannot travel",
        ),
        (
            "tests/awd/test_awd_algorithm.py",
            "import torch\n",
            "test_awd_algorithm.py cannot travel",
        ),
    ],
)
def test_what_cannot_travel_is_refused(run, release, project, file, text, message):
    (project / file).write_text(text)
    before = contents(release)
    with pytest.raises(ExportError, match=message):
        run(sources=Sources(project))
    assert contents(release) == before


def test_a_project_without_tests_is_not_a_checkout(tmp_path):
    with pytest.raises(ExportError, match="not a source checkout.*no fusion_plugins/"):
        Sources(tmp_path)
