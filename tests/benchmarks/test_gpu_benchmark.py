"""The GPU benchmark runs to its end without one."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu") / "gpu.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import gpu

        gpu.main(["--tiny", "--out", str(out)])
        sections = list(gpu.SECTIONS)
    report = json.loads(out.read_text())
    assert list(report["sections"]) == sections
    return report | {"markdown": out.with_suffix(".md").read_text()}


def test_every_row_has_figures(report):
    rows = [row for found in report["sections"].values() for row in found["rows"]]
    assert [row for row in rows if "error" in row] == []
    assert len(rows) >= 20 and all(row["seconds"] > 0 for row in rows)
    for row in rows:
        assert f"| {row['variant']} | {row['seconds']:.4f} |" in report["markdown"]


def test_a_failure_is_a_row_and_loses_nothing(report, monkeypatch, tmp_path):
    gpu, out = sys.modules["gpu"], tmp_path / "gpu.json"

    def fail(job):
        raise RuntimeError("no kernel image | is available")

    monkeypatch.setattr(gpu, "_encoding", fail)
    gpu.main(["--tiny", "--sections", "images", "awd", "--out", str(out)])
    images, awd = json.loads(out.read_text())["sections"].values()
    assert images["rows"][0]["error"] == "RuntimeError: no kernel image | is available"
    assert awd["rows"][0]["seconds"] > 0
