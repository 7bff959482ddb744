"""FusionBench's private names stand in one file, and hold in the installed release."""

import ast
from pathlib import Path

import pytest

import fusion_plugins
from fusion_plugins.cli.doctor import holds
from fusion_plugins.common import upstream
from fusion_plugins.common.upstream import Private, private_names, with_methods

PACKAGE = Path(fusion_plugins.__file__).parent
NAMES = {private.name for private in private_names().values()}
# Attributes of our own classes that happen to be called so.
OWN = {
    ("_processor", "pools/families/clip.py"),
    ("_tokenizer", "streaming/companions.py"),
    ("_test_datasets", "taskpool/sequence_classification.py"),
    ("_tokenizer", "taskpool/sequence_classification.py"),
    ("_test_datasets", "taskpool/seq2seq.py"),
    ("_tokenizer", "taskpool/seq2seq.py"),
    ("_test_datasets", "taskpool/text_inputs.py"),
    ("_tokenizer", "taskpool/text_inputs.py"),
}


@pytest.mark.parametrize("name", private_names())
def test_every_name_holds_in_the_installed_release(name):
    assert holds(private_names()[name])


@pytest.mark.parametrize(
    "owner", [upstream._POOL, upstream._SWITCH, upstream._OPENCLIP_TASKS]
)
def test_a_name_that_is_nowhere_does_not_hold(owner):
    assert not holds(Private(owner, "_of_no_release"))


@pytest.mark.parametrize("owner", ["fusion_bench.no_such", "fusion_bench:NoSuch"])
def test_a_missing_owner_is_said(owner):
    with pytest.raises(ImportError, match=r"no_such|NoSuch"):
        holds(Private(owner, "_models"))


def uses(path: Path) -> set[str]:
    """Private names that a file reads or sets as attributes, or spells as text."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found & NAMES


def test_no_other_file_uses_them():
    files = {p.relative_to(PACKAGE).as_posix(): p for p in PACKAGE.rglob("*.py")}
    del files["common/upstream.py"]
    found = {(name, file) for file, path in files.items() for name in uses(path)}
    assert found == OWN


class _Plain:
    def greet(self, name):
        return f"hello {name}"


def test_an_object_with_methods_of_its_own_stays_of_its_class():
    plain, other = _Plain(), _Plain()
    own = with_methods(plain, greet=lambda self, name: _Plain.greet(self, name) + "!")
    assert own is plain and isinstance(own, _Plain)
    assert (own.greet("you"), other.greet("you")) == ("hello you!", "hello you")
    names = ("__name__", "__qualname__", "__module__")
    assert [getattr(type(own), n) for n in names] == [getattr(_Plain, n) for n in names]
