"""The command: layouts it knows, what it says, and how it ends."""

import re
from pathlib import Path

import pytest
from release_copy import contents, small_release

from tools.upstream.__main__ import main, make_parser
from tools.upstream.checkout import find_checkout
from tools.upstream.methods import METHODS, ExportError, find_method


def test_a_dry_run_lists_every_file_and_writes_none(release, capsys):
    before = contents(release)
    assert main([str(release), "--method", "awd", "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert contents(release) == before
    assert main([str(release), "--method", "awd"]) == 0
    wet = capsys.readouterr().out
    assert dry.replace("would write", "wrote") == wet
    assert f"checkout at {release}, configs in config/\n" in wet
    for path in contents(release).keys() - before.keys():
        assert f"wrote {path}\n" in wet
    assert "wrote fusion_bench/method/__init__.py\n" in wet
    assert "wrote mkdocs.yml\n" in wet
    assert "note:" not in wet  # nothing that only this project has is mentioned


def test_an_installed_release_gets_package_and_configs(tmp_path, capsys):
    root = small_release(tmp_path, "fusion_bench_config")
    assert main([str(root), "--method", "awd"]) == 0
    said = capsys.readouterr().out
    assert f"installed release at {root}, configs in fusion_bench_config/\n" in said
    assert "note: no page" in said and "note: no test" in said
    new = contents(root)
    assert "fusion_bench_config/method/awd/awd.yaml" in new
    assert "fusion_bench/method/awd/__init__.py" in new
    assert not any(path.startswith(("docs", "tests", "config/")) for path in new)


def test_mistakes_end_with_status_2_and_a_message(release, tmp_path, capsys):
    for arguments, message in (
        ([str(tmp_path / "none"), "--method", "awd"], "is not a FusionBench checkout"),
        ([str(release), "--method", "adw"], "unknown method 'adw', expected one of"),
        ([str(release), "--method", "awd", "--name", "../x"], "--name is '../x'"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_folders_that_are_not_checkouts(release, tmp_path):
    (release / "mkdocs.yml").unlink()
    with pytest.raises(ExportError, match="no mkdocs.yml to list the page in"):
        find_checkout(release)
    (release / "config" / "fabric_model_fusion.yaml").unlink()
    with pytest.raises(
        ExportError, match="neither config/ nor fusion_bench_config/ hol"
    ):
        find_checkout(release)
    (release / "fusion_bench" / "method" / "__init__.py").unlink()
    with pytest.raises(ExportError, match="it has no fusion_bench/method/__init__.py"):
        find_checkout(release)


def test_a_stray_config_folder_does_not_hide_the_installed_one(tmp_path):
    root = small_release(tmp_path, "fusion_bench_config")
    (root / "config").mkdir()
    assert find_checkout(root).config.name == "fusion_bench_config"


def test_another_name_must_be_a_package_name():
    assert find_method("awd", "awd_two").home == "awd_two"
    for name in ("a-b", "A", "_a", "a/b", "", "class "):
        with pytest.raises(ExportError, match="expected a lower-case Python name"):
            find_method("awd", name)


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
