"""The command: what it says, and how it ends."""

import re
from pathlib import Path

import pytest
from release_copy import contents

from tools.upstream.__main__ import main, make_parser
from tools.upstream.methods import METHODS


def test_a_dry_run_lists_every_file_and_writes_none(release, capsys):
    before = contents(release)
    assert main([str(release), "--method", "awd", "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert contents(release) == before
    assert main([str(release), "--method", "awd"]) == 0
    wet = capsys.readouterr().out
    assert dry.replace("would write", "wrote") == wet
    after = contents(release)
    changed = sorted(path for path in after if after[path] != before.get(path))
    assert [f"wrote {path}" for path in changed] == wet.splitlines()
    assert {"fusion_bench/method/__init__.py", "mkdocs.yml"} < set(changed)


@pytest.mark.parametrize("missing", ["mkdocs.yml", "fusion_bench/method/__init__.py"])
def test_a_folder_that_is_no_checkout_is_named(release, capsys, missing):
    (release / missing).unlink()
    assert main([str(release), "--method", "awd"]) == 2
    said = capsys.readouterr().err
    assert f"{release} is not a FusionBench checkout: it has no {missing}." in said


def test_a_file_where_a_folder_should_be_ends_with_status_2(release, capsys):
    (release / "tests").rmdir()
    (release / "tests").write_text("")
    assert main([str(release), "--method", "awd"]) == 2
    assert "error: [Errno" in capsys.readouterr().err


def test_the_documented_commands_and_options_exist():
    text = (Path(__file__).parents[2] / "docs" / "upstream.md").read_text()
    commands = re.findall(r"python -m tools.upstream (.+)", text)
    assert len(commands) == 2
    for command in commands:
        assert make_parser().parse_args(command.split()).method in METHODS
    known = set(re.findall(r"--[a-z-]+", make_parser().format_help())) - {"--help"}
    assert set(re.findall(r"^\| `(--[a-z-]+)`", text, re.M)) == known
    (methods,) = re.findall(r"^\| `--method` \| (.+) \|$", text, re.M)
    assert set(re.findall(r"`(\w+)`", methods)) == set(METHODS)
