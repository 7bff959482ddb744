"""What an export copies, changes, lists and refuses."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from release_copy import contents

from tools.upstream.export import export
from tools.upstream.methods import METHODS, ExportError
from tools.upstream.modules import PACKAGE, travelling
from tools.upstream.moving import CORE, place_of

LISTS = ("fusion_bench/method/__init__.py", "mkdocs.yml")


@pytest.fixture
def run(release):
    """Export a method; the texts that were written come back, by path."""

    def run(name: str, force: bool = False) -> dict[str, str]:
        writes = export(release, METHODS[name], force)
        for path, text in writes.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return {p.relative_to(release).as_posix(): t for p, t in writes.items()}

    return run


def test_awd_is_small(run):
    """Task vectors, pools and the maths; no family, test-time engine or OpenCLIP."""
    written = run("awd")
    modules = [p for p in written if p.startswith("fusion_bench") and p not in LISTS]
    assert 20 < len(modules) <= 30
    core = {p.split("/")[3] for p in modules if f"/{CORE}/" in p}
    assert {"common", "task_vectors", "pools"} < core
    assert not core & {"adaptation", "learned", "taskpool"}
    assert not [p for p in modules if "openclip" in p or "families" in p]


class _Statements(ast.NodeTransformer):
    def visit_Import(self, node):
        return None

    visit_ImportFrom = visit_Import


@cache  # methods share most modules
def statements(text: str) -> str:
    """All but imports, with the names of the old home."""
    text = re.sub(rf"fusion_bench\.method\.({CORE}\.)?", "fusion_plugins.", text)
    text = re.sub(r"method=\w+/", "method=", text)
    return ast.dump(_Statements().visit(ast.parse(text)))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_files_are_copies(run, name):
    written = run(name)
    modules = travelling(METHODS[name])
    assert len(modules) > 20
    changed = [
        path
        for path in modules
        if statements(written[f"fusion_bench/method/{place_of(path).as_posix()}"])
        != statements(path.read_text())
    ]
    # Tables of names that do not travel, and lists of distributions.
    assert len(changed) <= 4
    assert not [path for path in changed if path.name == "functional.py"]


def test_several_methods_share_one_core_in_any_order(run, release):
    written = run("awd")
    core = {path for path in written if f"/{CORE}/" in path}
    again = run("tinting")  # brings AWD along, which is there
    assert not [path for path in again if "/awd" in path]
    assert {path for path in again if f"/{CORE}/" in path} - core
    assert run("awd") == run("tinting") == {}
    init = (release / "fusion_bench/method/tinting/__init__.py").read_text()
    assert "from .algorithm import TintingAlgorithm\n" in init


def test_a_method_brings_those_it_builds_on(run, release):
    assert {"tests/test_awd.py", "docs/algorithms/awd.md"} < run("adamerging").keys()
    text = (release / "fusion_bench/method/__init__.py").read_text()
    assert text.count('    "awd": ["AWDAlgorithm"],\n') == 1


def resolves(root: Path, dotted: str) -> bool:
    """Whether a name below `fusion_bench.method` is a module, or stands in one."""
    for end in range(len(parts := dotted.split(".")), 1, -1):
        stem = root.joinpath(*parts[:end])
        files = (stem / "__init__.py", stem.with_suffix(".py"))
        if found := [file for file in files if file.is_file()]:
            text, names = found[0].read_text(), parts[end : end + 1]
            return all(re.search(rf"\b{name}\b", text) for name in names)
    return False


@pytest.mark.parametrize("name", sorted(METHODS))
def test_nothing_speaks_of_this_project(run, release, name):
    written = run(name)
    mentions = set()
    for path in written.keys() - set(LISTS):
        text = written[path]
        assert not re.search(r"fusion[-_ ]plugins", text, re.IGNORECASE), path
        assert not re.search(r"\bour\b|\ball of ours\b", text, re.IGNORECASE), path
        mentions |= set(re.findall(r"fusion_bench\.method\.[\w.]*\w", text))
    # Tests and families also name what the copy of the lists alone does not hold.
    homes = (CORE, *(method.home for method in METHODS.values()))
    own = {m for m in mentions if m.split(".")[2] in homes or m.endswith("Algorithm")}
    assert len(own) > 4
    assert not [mention for mention in own if not resolves(release, mention)]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_pages_stand_alone(run, release, name):
    home = METHODS[name].home
    text = run(name)[f"docs/algorithms/{home}.md"]
    here = (PACKAGE.parent / "docs" / "algorithms" / f"{name}.md").read_text()
    assert 0.5 * len(here) < len(text) and text.startswith(here.partition("\n")[0])
    assert "<!--" not in text and "## Results" not in text and "## Formulas" in text
    for link in re.findall(r"\]\((?!https://)([^)]*)\)", text):
        assert (release / "docs" / "algorithms" / link).is_file(), link
    commands = re.findall(r"^fusion_bench \\\n    method=(\S+) \\\n", text, re.M)
    assert commands
    for choice in commands:
        assert (release / "config" / "method" / f"{choice}.yaml").is_file()
    assert text.endswith(f"::: fusion_bench.method.{home}.{METHODS[name].class_name}\n")


def test_configs_build_on_each_other_by_absolute_names(run):
    written = run("adamerging")
    folder = "config/method/unified_adamerging"
    texts = {p: t for p, t in written.items() if p.startswith(folder)}
    assert len(texts) == 5
    config = yaml.safe_load(texts[f"{folder}/adamerging.yaml"])
    assert config["_target_"] == "fusion_bench.method.AdaMergingAlgorithm"
    assert config["defaults"] == [f"/method/{CORE}/learned@_here_", "_self_"]
    assert f"config/method/{CORE}/learned.yaml" in written
    config = yaml.safe_load(texts[f"{folder}/adamerging_pp.yaml"])
    assert config["defaults"][0] == "/method/unified_adamerging/adamerging@_here_"
    pools = "modelpool=CLIPVisionModelPool/clip-vit-base-patch32_TA8"
    command = f"#   fusion_bench method=unified_adamerging/adamerging {pools} "
    assert command in texts[f"{folder}/adamerging.yaml"]


def test_lists_get_one_line_each(run, release):
    run("awd")
    text = (release / "fusion_bench" / "method" / "__init__.py").read_text()
    assert text.count('    "awd": ["AWDAlgorithm"],\n') == 1
    assert text.count("    from .awd import AWDAlgorithm\n") == 1
    nav = (release / "mkdocs.yml").read_text()
    merging, mixing = yaml.safe_load(nav)["nav"][0]["Algorithms"]
    assert merging["Model Merging"][-1] == {"AWD": "algorithms/awd.md"}
    assert len(mixing["Model Mixing"]) == 1
    assert "# - a page that is not written yet" in nav


def test_a_file_that_differs_is_replaced_with_force_only(run, release):
    own = release / "fusion_bench" / "method" / "awd" / "__init__.py"
    own.parent.mkdir()
    own.write_text("# FusionBench's own\n")
    before = contents(release)
    with pytest.raises(ExportError, match="awd/__init__.py is there already and diff"):
        run("awd")
    assert contents(release) == before
    assert "fusion_bench/method/awd/__init__.py" in run("awd", force=True)


@pytest.mark.parametrize(
    ("file", "old", "message"),
    [
        (LISTS[0], '    "task_arithmetic": [', "has no 'task_arithmetic' where"),
        (LISTS[0], "    from .", "has no imports for type checkers where"),
        (LISTS[1], "- Model Merging:", "no section `- Model Merging:` in its navig"),
    ],
)
def test_a_list_that_is_elsewhere_is_named(run, release, file, old, message):
    path = release / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, "    # "))
    before = contents(release)
    with pytest.raises(ExportError, match=message):
        run("awd")
    assert contents(release) == before


def test_a_text_that_names_this_project_is_refused(run, release, monkeypatch):
    before = contents(release)
    monkeypatch.setattr(
        "tools.upstream.export.moved_page", lambda *_: "Title\n  See fusion-plugins.\n"
    )
    message = r"docs/algorithms/awd.md would still .* 'See fusion-plugins\.'"
    with pytest.raises(ExportError, match=message):
        run("awd")
    assert contents(release) == before
