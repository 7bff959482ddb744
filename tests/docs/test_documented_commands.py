"""Every command and Python block of README and docs works; see documented.py."""

import os
import re
import subprocess
import sys

import pytest
from documented import (
    NEEDS,
    PAGES,
    REPOSITORY,
    examples,
    inline_commands,
    languages,
)
from sandbox import Sandbox

pytestmark = pytest.mark.slow

SHELL = examples("bash")
PYTHON = examples("python")


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory, tiny_pool_root):
    sandbox = Sandbox(tmp_path_factory.mktemp("docs"), tiny_pool_root)
    with sandbox:
        yield sandbox


def test_blocks_are_found_and_in_known_languages():
    assert len(SHELL) >= 15 and len(PYTHON) > 5 and len(inline_commands()) > 5
    # Anything else would escape these tests unseen.
    assert languages() <= {"bash", "python", "yaml", "text", "bibtex", "json"}
    assert all(example.needs in (None, *NEEDS) for example in SHELL + PYTHON)


@pytest.mark.parametrize("example", SHELL, ids=str)
def test_commands_work(example, sandbox):
    for command in example.commands:
        sandbox.run_command(command, example.needs)


@pytest.mark.parametrize("words", inline_commands(), ids=" ".join)
def test_commands_in_sentences_are_accepted(words, sandbox):
    sandbox.accept(words)


@pytest.mark.parametrize(
    "command",
    [
        "make chekc",
        "fusion-plugins demo build --otu NEW",
        "fusion-plugins demo build-text --data DATA --out NEW",
        "python benchmarks/awd.py --repaets 2",
        "python benchmarks/awd.py --repeats two",
        "python -m tools.upstream CHECKOUT --method awdd",
        "python benchmarks/common.py",
    ],
)
def test_a_misspelt_command_is_not(command, sandbox):
    with pytest.raises(AssertionError):
        sandbox.accept(command.split())


@pytest.mark.parametrize("page", sorted({e.page for e in PYTHON}), ids=lambda p: p.stem)
def test_python_blocks_work(page, sandbox):
    blocks = [e for e in PYTHON if e.page == page and e.needs is None]
    sandbox.run_python("\n".join(block.text for block in blocks), page)


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("merge_folders", ["models/base", "models/mnist", "--out", "by-example"]),
        ("coefficients_by_hand", ["models/base", "models/mnist", "models/svhn"]),
        ("adapt_and_evaluate", ["--root", "POOL", "--rounds", "2", "--out", "tinted"]),
    ],
)
def test_example_scripts_run(script, arguments, sandbox, capfd):
    sandbox.run_script(REPOSITORY / "examples" / f"{script}.py", arguments)
    assert capfd.readouterr().out


def test_every_example_script_is_tested():
    parameters = test_example_scripts_run.pytestmark[0].args[1]
    found = {path.stem for path in (REPOSITORY / "examples").glob("*.py")}
    assert found == {script for script, _ in parameters}


def test_the_docs_cite_what_the_command_prints():
    printed = REPOSITORY / "fusion_plugins" / "cli" / "citations.bib"
    assert (
        f"```bibtex\n{printed.read_text()}```"
        in (REPOSITORY / "docs/cite.md").read_text()
    )


def test_links_between_pages_lead_somewhere():
    checked = 0
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
            checked += 1
    assert checked > 20


def test_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the docs extra: pip install -e .[docs]")
    pytest.importorskip("mkdocstrings", reason="needs the docs extra")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path / "site"],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "site" / "reference" / "algorithms" / "index.html").is_file()
