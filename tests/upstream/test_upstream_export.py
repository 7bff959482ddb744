"""What an export copies, rewrites, lists and refuses, on a toy project."""

import ast
import re

import pytest
import yaml
from release_copy import contents
from toy_project import FILES, make_project

from tools.upstream import ExportError, Plan, find_checkout, find_method
from tools.upstream.export import plan_export
from tools.upstream.sources import Sources


@pytest.fixture
def export(release, tmp_path):
    """Plan and write an export of the toy; the plan comes back."""

    def run(name="awd", home=None, force=False, root=release, **changes) -> Plan:
        sources = Sources(make_project(tmp_path / "project", **changes))
        method = find_method(name, home)
        plan = plan_export(find_checkout(root), method, sources, force)
        plan.apply()
        return plan

    return run


def imports(text: str) -> set[str]:
    """Every import statement, `from x import a, b` as two."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        for alias in getattr(node, "names", []):
            one = ast.Import(names=[alias])
            if isinstance(node, ast.ImportFrom):
                one = ast.ImportFrom(node.module, [alias], node.level)
            found.add(ast.unparse(one))
    return found


def test_exactly_the_modules_that_are_reached_are_copied(export, release):
    export()
    package = release / "fusion_bench" / "method" / "awd"
    found = {p.relative_to(package).as_posix() for p in package.rglob("*.py")}
    assert found == {
        "__init__.py",
        "algorithm.py",
        "functional.py",
        "_core/__init__.py",
        "_core/late.py",  # imported inside a function
        "_core/options.py",
        "_core/plain.py",
        "_core/shared/__init__.py",
        "_core/shared/deep.py",
        "_core/shared/named.py",  # named in a table
        "_core/shared/tables.py",
        "_core/spelled_out.py",
        "_core/told/__init__.py",
        "_core/told/model.py",
        "_core/typed.py",  # for type checkers
    }


def test_imports_are_those_of_the_new_place(export, release):
    export()
    package = release / "fusion_bench" / "method" / "awd"
    text = (package / "algorithm.py").read_text()
    core = "fusion_bench.method.awd._core"
    assert imports(text) == {
        f"import {core}.plain",
        f"from {core}.told.model import Told",
        f"from {core}.shared.deep import first_name_that_is_long",
        f"from {core}.shared.deep import second_name_that_is_long",
        f"from {core} import options as checks",
        f"from {core}.shared import public",
        "from . import functional",
        "from .functional import solve",
        f"from {core} import late",
        "from fusion_bench.method import awd",
    }
    assert f"return (\n            {core}.plain.VALUE," in text
    assert f":mod:`{core}.shared.deep`" in text
    assert imports((package / "_core" / "late.py").read_text()) == {
        "from .shared import deep"
    }
    assert (
        "from .algorithm import AWDAlgorithm" in (package / "__init__.py").read_text()
    )


def test_strings_name_the_new_place_and_what_is_left_is_noted(export, release):
    plan = export()
    core = release / "fusion_bench" / "method" / "awd" / "_core"
    text = (core / "told" / "model.py").read_text()
    assert "see fusion_bench.method.awd._core.Told and fusion_plugins.unused" in text
    assert 'PACKAGES = ("torch",)' in text
    table = (core / "shared" / "tables.py").read_text()
    assert '"other": "fusion_bench.method.awd._core.spelled_out"' in table
    assert [re.split(r"[( ]", note)[0] for note in plan.notes] == [
        "algorithm.py",
        "tables.py",
        "model.py",
    ]
    assert all("fusion_plugins.unused" in note for note in plan.notes)


def test_the_root_of_the_copy_loads_public_names(export, release):
    export()
    text = (release / "fusion_bench/method/awd/_core/__init__.py").read_text()
    space = {"__name__": "core"}
    exec(compile(text, "core", "exec"), space)
    assert space["__all__"] == ["AWDAlgorithm", "Told"]
    assert space["_EXPORTS"]["AWDAlgorithm"] == "fusion_bench.method.awd.algorithm"
    with pytest.raises(AttributeError, match="'core' has no attribute 'Unused'"):
        space["__getattr__"]("Unused")


def test_the_test_imports_from_the_lists_that_users_import_from(export, release):
    export(home="other_name")
    text = (release / "tests" / "test_other_name.py").read_text()
    home = "fusion_bench.method.other_name"
    assert imports(text) == {
        "import unittest",
        "from fusion_bench.method import AWDAlgorithm",
        f"from {home}.functional import solve",
        f"from {home}._core.late import deep",
    }
    assert f'LOGGER = "{home}.algorithm"' in text


def test_configs_compose_from_the_methods_folder(export, release):
    export(home="mine")
    folder = release / "config" / "method" / "mine"
    assert sorted(p.name for p in folder.iterdir()) == [
        "awd.yaml",
        "awd_more.yaml",
        "part.yaml",
    ]
    text = (folder / "awd.yaml").read_text()
    assert yaml.safe_load(text) == {
        "defaults": [
            "/method/mine/part@_here_",
            {"/method@base": "task_arithmetic"},
            "_self_",
        ],
        "_target_": "fusion_bench.method.AWDAlgorithm",
        "alpha": 1,
    }
    assert "part@_here_ # shared" in text and "# see part.yaml" in text
    # Commands are as they work there; those that cannot are left out.
    assert [line for line in text.splitlines() if "fusion_bench method" in line] == [
        "#   fusion_bench method=mine/awd modelpool=theirs"
        " taskpool=CLIPVisionModelTaskPool/clip-vit-classification_TA8"
    ]
    more = yaml.safe_load((folder / "awd_more.yaml").read_text())
    assert more["defaults"] == ["/method/mine/awd@_here_", "_self_"]


def test_lists_get_one_line_each(export, release):
    export()
    before = contents(release)
    export(force=True)
    assert contents(release) == before
    text = (release / "fusion_bench" / "method" / "__init__.py").read_text()
    assert text.count('    "awd": ["AWDAlgorithm"],\n') == 1
    assert text.count("    from .awd import AWDAlgorithm\n") == 1
    nav = (release / "mkdocs.yml").read_text()
    assert yaml.safe_load(nav)["nav"][0]["Algorithms"] == [
        {
            "Model Merging": [
                {"Task Arithmetic": "algorithms/task_arithmetic.md"},
                {"AdaMerging": "algorithms/adamerging.md"},
                {"AWD": "algorithms/awd.md"},
            ]
        },
        {"Model Mixing": [{"PWE MoE": "algorithms/pwe_moe.md"}]},
    ]
    assert "# - a page that is not written yet" in nav


def test_an_export_again_replaces_its_files_and_removes_old_ones(export, release):
    export()
    before = contents(release)
    with pytest.raises(ExportError, match="is there already.*Replace it with --force"):
        export()
    assert contents(release) == before
    changed = "fusion_plugins/awd/functional.py".replace("/", "__").replace(".", "_")
    export(
        force=True,
        **{changed: "def solve(): return 2\n"},
        fusion_plugins__shared__tables_py="def find(): ...\n",
    )
    after = contents(release)
    gone = {"shared/named.py", "spelled_out.py"}
    prefix = "fusion_bench/method/awd/"
    assert before.keys() - after.keys() == {f"{prefix}_core/{name}" for name in gone}
    assert b"return 2" in after[f"{prefix}functional.py"]


def test_files_of_others_are_never_overwritten(export, release):
    own = release / "fusion_bench" / "method" / "awd" / "__init__.py"
    own.parent.mkdir()
    own.write_text("# FusionBench's own\n")
    before = contents(release)
    for force in (False, True):
        with pytest.raises(
            ExportError, match="awd/__init__.py did not come from an exp"
        ):
            export(force=force)
    assert contents(release) == before
    export(home="awd_too")
    assert own.read_text() == "# FusionBench's own\n"


def test_a_failed_write_leaves_nothing_behind(export, release):
    (release / "tests").rmdir()
    (release / "tests").write_text("a file where a folder should be")
    before = contents(release)
    folders = {p for p in release.rglob("*") if p.is_dir()}
    with pytest.raises(OSError):
        export()
    assert contents(release) == before
    assert {p for p in release.rglob("*") if p.is_dir()} == folders


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
def test_a_list_that_is_elsewhere_is_named(export, release, file, old, new, message):
    path = release / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    before = contents(release)
    with pytest.raises(ExportError, match=message):
        export()
    assert contents(release) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"config__method__awd_more_yaml": "defaults:\n  - awd\n  - gone\n"},
            "builds on method/gone.yaml",
        ),
        (
            {"config__method__awd_more_yaml": "defaults: [awd]\n"},
            "awd_more.yaml: write its defaults one to a line",
        ),
        (
            {
                "config__method__awd_yaml": FILES["config/method/awd.yaml"].replace(
                    "task_arithmetic", "gone"
                )
            },
            "builds on method/gone.yaml",
        ),
        (
            {"tests__awd__test_awd_algorithm_py": "import unittest\nimport pytest\n"},
            r"cannot travel: it imports \['pytest'\]",
        ),
        (
            {"tests__awd__test_awd_algorithm_py": "import torch\n"},
            "cannot travel: it does not import unittest",
        ),
        (
            {
                "tests__awd__test_awd_algorithm_py": "import unittest\n"
                "from fusion_plugins.unused import x\n"
            },
            "line 2 imports fusion_plugins.unused.x, which the method 'awd' itself does",
        ),
        (
            {
                "tests__awd__test_awd_algorithm_py": "import unittest\n"
                "import fusion_plugins.unused\n"
            },
            "would still depend on fusion_plugins: `import fusion_plugins.unused`",
        ),
    ],
)
def test_what_cannot_travel_is_refused(export, release, changes, message):
    before = contents(release)
    with pytest.raises(ExportError, match=message):
        export(**changes)
    assert contents(release) == before


def test_a_project_without_tests_is_not_a_checkout(tmp_path):
    with pytest.raises(ExportError, match="not a source checkout.*no fusion_plugins/"):
        Sources(tmp_path)
