"""The doctor's tables: what they say, how wide they are, and the exit status."""

import re
import sys
import types

import pytest
import torch

from fusion_plugins.cli import doctor, main
from fusion_plugins.common import EXTRAS, upstream
from fusion_plugins.common.upstream import Private, private_names


@pytest.fixture
def run(capsys, monkeypatch):
    """The exit status, and the printed lines."""
    monkeypatch.setenv("COLUMNS", "80")

    def run() -> tuple[int, list[str]]:
        status = main(["doctor"])
        return status, [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return run


def test_all_is_well_and_fits_80_columns(run):
    status, lines = run()
    assert status == 0 and lines[-1] == "All that the core needs is here."
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for word in ("python", "torch", "transformers", "fusion-bench", "datasets"):
        assert re.search(rf"^{word} +\d+\.\d+", text, re.M), word
    for private in private_names().values():
        assert re.search(rf"^{private.name} .* yes$", text, re.M), private.name
    for word in (*EXTRAS, "CPU", "CUDA", "MPS", "demo pools"):
        assert re.search(rf"^{word} ", text, re.M), word
    assert re.search(r"^results, here +\d+\.\d GiB /", text, re.M)


@pytest.mark.parametrize(("needed_by", "status"), [("core", 1), ("compare", 0)])
def test_a_name_that_is_gone_counts_where_the_core_needs_it(
    run, monkeypatch, needed_by, status
):
    gone = Private(upstream._POOL, "_gone_models", needed_by)
    monkeypatch.setattr(upstream, "models_of", gone)
    found, lines = run()
    assert found == status
    row = next(line for line in lines if line.startswith("_gone_models"))
    assert row.split() == ["_gone_models", "BaseModelPool", needed_by, "no"]
    assert ("missing" in lines[-1]) == bool(status)


def test_a_requirement_that_is_not_met_is_status_1(run, monkeypatch):
    wanted = ["torch>=999", "no-such-package>=1", 'x>9; extra == "dev"', "rich"]
    monkeypatch.setattr(doctor, "requires", lambda _: wanted)
    status, lines = run()
    assert status == 1 and not any(line.startswith("x ") for line in lines)
    starts = ("torch ", "no-such-package missing ", "rich ")
    rows = [next(line for line in lines if line.startswith(s)) for s in starts]
    assert [row.split()[-1] for row in rows] == ["no", "no", "yes"]


def test_devices_and_what_is_optional_but_missing(run, monkeypatch):
    device = types.SimpleNamespace(name="Some GPU", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: device)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    status, lines = run()
    assert status == 0 and lines.count("CUDA Some GPU, 80 GiB") == 2
    assert any(
        re.fullmatch(r"open_clip +missing +pip install 'fusion-plugins\[openclip\]'", x)
        for x in lines
    )
    assert [x for x in lines if x.startswith("_classifier_heads ")][0].endswith(" ?")


def test_completion_prints_what_shtab_makes_of_all_commands(monkeypatch, capsys):
    def complete(parser, shell):
        return f"{shell}: {parser.format_usage()}"

    shtab = types.ModuleType("shtab")
    shtab.complete, shtab.__spec__ = complete, types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "shtab", shtab)
    assert main(["completion", "zsh"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("zsh: usage: fusion-plugins") and "doctor" in printed


def test_completion_without_shtab_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    line = "error: Completion needs shtab: pip install 'fusion-plugins[completion]'.\n"
    assert capsys.readouterr().err == line
