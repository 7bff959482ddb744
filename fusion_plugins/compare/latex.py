"""The results as a LaTeX table."""

from __future__ import annotations

from collections.abc import Mapping

from .looks import short_names
from .results import Comparison
from .tables import (
    BEST,
    FAILED,
    Grid,
    TableOptions,
    make_grid,
    protocol,
    table_notes,
)

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "≈": r"$\approx$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "…": r"\ldots{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def latex_escape(text: str) -> str:
    """Plain text as LaTeX that any pdflatex compiles; other scripts become "?"."""
    spaced = " ".join(text.split())
    known = (
        _LATEX.get(c, c if c.isascii() or c in "äöüßéèáàç" else "?") for c in spaced
    )
    return "".join(known)


def latex_table(comparison: Comparison, options: TableOptions | None = None) -> str:
    """A table environment; needs the package booktabs."""
    options = options or TableOptions()
    grid, names = make_grid(comparison, options), options.names
    grid.text["method"] = short_names(grid.text["method"].tolist(), names)
    sentences = [f"{comparison.title}: {protocol(comparison)[0]}"]
    sentences += [*protocol(comparison)[1:], BEST]
    columns = list(grid.text.columns[1:])
    parts = -(-len(columns) // options.split)
    size = -(-len(columns) // parts)  # parts of about one size
    tabulars = [
        _tabular(grid.part(columns[start : start + size]), names)
        for start in range(0, len(columns), size)
    ]
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_escape(' '.join(sentences))}}}",
            "\n\\medskip\n\n".join(tabulars) + r"\end{table}",
            *(f"% {latex_escape(note)}" for note in table_notes(comparison)),
            "",
        ]
    )


def _tabular(grid: Grid, names: Mapping[str, str] | None) -> str:
    table, width = grid.text, grid.text.shape[1] - 1
    text = table.map(lambda cell: latex_escape(cell.replace(" ± ", "±")))
    if len(table) > grid.rows:
        text.iloc[grid.rows, 0] = "\\midrule\n" + text.iloc[grid.rows, 0]
    titles = map(latex_escape, short_names(grid.headings(table.columns), names))
    headings = [title.replace("{", "{{").replace("}", "}}") for title in titles]
    marks = grid.rank.map({0: "", 1: "textbf:--rwrap;", 2: "underline:--rwrap;"}.get)
    style = text.style.hide(axis="index").apply(lambda _: marks, axis=None)
    style.relabel_index(headings, axis="columns")  # which are formats
    written = style.to_latex(hrules=True, column_format="l" + "r" * width)
    failed = " & ".join([FAILED, *[""] * (width - 1)])
    return written.replace(
        f"& {failed}", rf"& \multicolumn{{{width}}}{{l}}{{{FAILED}}}"
    )
