"""The LaTeX table goes through pdflatex, whatever the names are."""

import shutil
import subprocess

import pytest
from sample_results import METHODS, sample_published, write_large, write_sample

from fusion_plugins.compare.latex import latex_table
from fusion_plugins.compare.looks import short_names
from fusion_plugins.compare.results import Comparison

PDFLATEX = shutil.which("pdflatex")
NASTY = r"50 % of a_b & c #1 $x$ ^ ~ \input{x} {y} <z> é ± ≤ 数"
DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs}
\begin{document}
%s
\end{document}
"""


def table(folder, **options):
    """The table of a results folder."""
    return latex_table(Comparison.read(write_sample(folder, **options)))


def large_table(folder):
    return latex_table(Comparison.read(write_large(folder, layers=3)))


def nasty_table(folder):
    methods = (*METHODS, (NASTY, {"x_y": "{&}"}, 0.5, 1.0, False, False, False))
    published = sample_published()
    published["rows"][0]["label"] = published["source"] = NASTY
    tasks = (NASTY, "oxford_flowers102", "100%")
    return table(
        folder, methods=methods, tasks=tasks, title=NASTY, published=published, layers=3
    )


@pytest.mark.slow
@pytest.mark.skipif(
    PDFLATEX is None,
    reason="pdflatex is not installed"
    " (Debian: apt-get install texlive-latex-base texlive-latex-recommended)",
)
@pytest.mark.parametrize("write", [table, large_table, nasty_table])
def test_table_compiles(tmp_path, write):
    (tmp_path / "table.tex").write_text(DOCUMENT % write(tmp_path / "r"), "utf-8")
    done = subprocess.run(
        [PDFLATEX, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape"]
        + ["table.tex"],
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
        check=False,
    )
    log = (tmp_path / "table.log").read_text("utf-8", errors="replace")
    errors = [line for line in log.splitlines() if line.startswith("!")]
    assert (done.returncode, errors) == (0, [])
    assert "Missing character" not in log
    assert (tmp_path / "table.pdf").stat().st_size > 1000


def test_every_row_has_a_cell_for_every_column(tmp_path):
    text = nasty_table(tmp_path / "r").replace(r"\&", "")
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 1 + (len(METHODS) + 1) + 3
    widths = {line.count("&") for line in lines if r"\multicolumn" not in line}
    assert len(widths) == 1
    assert sum(r"\multicolumn" in line and "failed" in line for line in lines) == 1


def test_means_are_in_the_table_as_the_report_shows_them(tmp_path):
    text = table(tmp_path / "r", layers=3)
    comparison = Comparison.read(tmp_path / "r")
    names = short_names([row.label for row in comparison.finished])
    assert {"TIES", "AWD (alpha=0.2, scale_free=True)"} < set(names)
    for row, name in zip(comparison.finished, names, strict=True):
        mean, _, deviation = comparison.scale.spread(comparison.average(row)).partition(
            " ± "
        )
        want = mean + (rf"$\pm${deviation}" if deviation else "")
        line = next(
            line.replace(r"\textbf{", "").replace(r"\underline{", "").replace("} ", " ")
            for line in text.splitlines()
            if line.startswith(name.replace("_", r"\_") + " &")
        )
        assert f"& {want} &" in line
