"""The summary as a LaTeX table."""

from __future__ import annotations

from collections.abc import Sequence

from .summary import Summary
from .tables import make_grid

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": r"$-$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def latex_escape(text: str) -> str:
    """Plain text as LaTeX that any pdflatex compiles; other scripts become "?"."""
    spaced = " ".join(text.split())
    known = (
        _LATEX.get(c, c if c.isascii() or c in "äöüßéèáàç" else "?") for c in spaced
    )
    return "".join(known)


def latex_table(summary: Summary) -> str:
    """A table environment; needs the package booktabs."""
    grid = make_grid(summary, "±")
    width = len(grid.heading)
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_escape(summary.title)}: {latex_escape(grid.notes[0])}}}",
        rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}",
        r"\toprule",
        _latex_line(grid.heading),
        r"\midrule",
        *(_latex_row(label, cells, width) for label, cells in grid.rows),
    ]
    if grid.published:
        lines.append(r"\midrule")
        lines += [_latex_row(label, cells, width) for label, cells in grid.published]
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    lines += [f"% {latex_escape(note)}" for note in grid.notes[1:]]
    return "\n".join(lines) + "\n"


def _latex_row(label: str, cells: list[str] | str, width: int) -> str:
    if isinstance(cells, list):
        return _latex_line([label, *cells])
    failed = rf"\multicolumn{{{width - 1}}}{{l}}{{failed}}"
    return rf"{latex_escape(label)} & {failed} \\"


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(map(latex_escape, cells)) + r" \\"
