"""The ranges in pyproject.toml allow the exact versions that we test with."""

import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from fusion_plugins import common

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = pytest.importorskip("tomli")

REPOSITORY = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
PINNED = ("constraints-transformers4.txt", "constraints-transformers5.txt")
LOWEST = "constraints-lowest.txt"
# Some packages' newest releases need Python 3.11: 3.10 has pins of its own.
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
CORE = [Requirement(text) for text in PYPROJECT["project"]["dependencies"]]
# What nothing but some users' work needs, by module and distribution.
OPTIONAL = {
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "open_clip": "open-clip-torch",
    "peft": "peft",
    "shtab": "shtab",
    "sklearn": "scikit-learn",
    "torchvision": "torchvision",
}


def of_extra(name: str) -> list[Requirement]:
    """What an extra brings, also through other extras of this package."""
    found = []
    for required in map(Requirement, EXTRAS[name]):
        own = required.name == PYPROJECT["project"]["name"]
        found += (
            [r for other in sorted(required.extras) for r in of_extra(other)]
            if own
            else [required]
        )
    return found


def collect_requirements() -> list[Requirement]:
    built = [Requirement(text) for text in PYPROJECT["build-system"]["requires"]]
    return [*CORE, *built, *of_extra("dev")]


def requirement(name: str) -> Requirement:
    return next(r for r in collect_requirements() if canonicalize_name(r.name) == name)


def lines(file: str) -> list[str]:
    text = (REPOSITORY / file).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if not line.startswith("#")]


def pins(file: str, python: str) -> list[tuple[str, str]]:
    """Package and version of every line that counts for a version of Python."""
    found = [Requirement(line) for line in lines(file)]
    return [
        (canonicalize_name(r.name), str(r.specifier).removeprefix("=="))
        for r in found
        if r.marker is None or r.marker.evaluate({"python_version": python})
    ]


@pytest.mark.parametrize("file", (*PINNED, LOWEST))
def test_constraints_are_exact_versions_and_nothing_else(file: str) -> None:
    marker = r'(; python_version (>=|<) "3\.1[13]")?'
    for line in lines(file):
        assert re.fullmatch(rf"[A-Za-z0-9][\w.-]*==[\w.!+]+{marker}", line), line


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("file", PINNED)
def test_each_python_has_one_pin_for_a_package(file: str, python: str) -> None:
    names = [name for name, _ in pins(file, python)]
    assert len(names) > 50
    assert len(names) == len(set(names)), "a package is pinned twice"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("file", PINNED)
def test_the_pins_are_inside_the_ranges(file: str, python: str) -> None:
    held = dict(pins(file, python))
    for required in collect_requirements():
        name = canonicalize_name(required.name)
        assert name in held, f"{file} does not pin {required}"
        assert required.specifier.contains(held[name]), required


def test_the_oldest_versions_that_are_tested_are_the_oldest_allowed() -> None:
    held, late = dict(pins(LOWEST, "3.10")), dict(pins(LOWEST, "3.13"))
    assert held.keys() == late.keys()
    brought = {canonicalize_name(r.name): r for r in of_extra("dev")}
    extras = [brought[name] for name in OPTIONAL.values() if name != "shtab"]
    for required in (*CORE, *extras):
        (lowest,) = (c.version for c in required.specifier if c.operator == ">=")
        early = not required.marker or required.marker.evaluate(
            {"python_version": "3.10"}
        )
        tested = (held if early else late)[canonicalize_name(required.name)]
        assert Version(tested) == Version(lowest), required


def test_the_matrix_is_the_same_here_and_in_the_workflow() -> None:
    workflow = (REPOSITORY / ".github/workflows/tests.yml").read_text("utf-8")
    unit = yaml.safe_load(workflow)["jobs"]["unit"]["strategy"]["matrix"]
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    for key, wanted in unit.items():
        (given,) = re.findall(rf"^MATRIX_{key.upper()}S? \?= (.+)$", makefile, re.M)
        assert given.split() == wanted
    files = {path.name for path in REPOSITORY.glob("constraints*.txt")}
    named = {f"constraints-{name}.txt" for name in unit["versions"]}
    assert files == {*named, *PINNED}


@pytest.mark.parametrize("required", collect_requirements(), ids=str)
def test_a_requirement_is_a_range(required: Requirement) -> None:
    operators = {clause.operator for clause in required.specifier}
    assert ">=" in operators
    assert not operators & {"==", "==="}


@pytest.mark.parametrize(
    "name, refused",
    [
        ("fusion-bench", "0.2.32"),
        ("transformers", "4.49.0"),
        ("transformers", "6.0.0"),
        ("datasets", "3.6.0"),
        ("lightning", "2.3.3"),
        ("hydra-core", "1.4.0"),
    ],
)
def test_releases_that_cannot_work_are_refused(name: str, refused: str) -> None:
    assert not requirement(name).specifier.contains(refused)


def test_the_core_does_without_optional_packages() -> None:
    names = {canonicalize_name(r.name) for r in CORE}
    assert "fusion-bench" in names and names.isdisjoint(OPTIONAL.values())


@pytest.mark.parametrize("module", OPTIONAL)
def test_the_extra_that_messages_name_brings_the_package(module: str) -> None:
    brought = {canonicalize_name(r.name) for r in of_extra(common.EXTRAS[module])}
    assert OPTIONAL[module] in brought
    assert OPTIONAL[module] in {canonicalize_name(r.name) for r in of_extra("dev")}


def test_nothing_names_an_extra_that_there_is_not() -> None:
    assert common.EXTRAS.keys() == OPTIONAL.keys()
    docs = REPOSITORY / "docs"
    texts = {
        page.stem: page.read_text(encoding="utf-8")
        for page in (REPOSITORY / "README.md", *docs.rglob("*.md"))
    }
    named = re.findall(r"fusion-plugins\[([\w,]+)\]", "\n".join(texts.values()))
    assert len(named) >= 5
    assert {extra for names in named for extra in names.split(",")} <= EXTRAS.keys()
    assert sorted(re.findall(r"^\| `(\w+)` \|", texts["install"], re.M)) == sorted(
        EXTRAS
    )


def test_python_3_10_is_supported() -> None:
    (clause,) = Requirement(
        f"python{PYPROJECT['project']['requires-python']}"
    ).specifier
    assert (clause.operator, Version(clause.version)) == (">=", Version("3.10"))
