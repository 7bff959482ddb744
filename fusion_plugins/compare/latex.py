"""The results as a LaTeX table."""

from __future__ import annotations

from .results import Comparison
from .tables import FAILED, table_notes, text_table

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
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def latex_escape(text: str) -> str:
    """Plain text as LaTeX that any pdflatex compiles; other scripts become "?"."""
    spaced = " ".join(text.split())
    known = (
        _LATEX.get(c, c if c.isascii() or c in "äöüßéèáàç" else "?") for c in spaced
    )
    return "".join(known)


def latex_table(comparison: Comparison) -> str:
    """A table environment; needs the package booktabs."""
    table, (caption, *notes) = text_table(comparison), table_notes(comparison)
    measured, width = table.attrs["rows"], table.shape[1] - 1
    table = table.map(lambda cell: latex_escape(cell.replace(" ± ", "±")))
    table.columns = [latex_escape(title) for title in table.columns]
    if len(table) > measured:
        table.iloc[measured, 0] = "\\midrule\n" + table.iloc[measured, 0]
    text = table.style.hide(axis="index").to_latex(
        hrules=True,
        column_format="l" + "r" * width,
        caption=latex_escape(f"{comparison.title}: {caption}"),
        position_float="centering",
    )
    failed = " & ".join([FAILED, *[""] * (width - 1)])
    text = text.replace(f"& {failed}", rf"& \multicolumn{{{width}}}{{l}}{{{FAILED}}}")
    below = "".join(f"% {latex_escape(note)}\n" for note in notes)
    return f"% \\usepackage{{booktabs}}\n{text}{below}"
