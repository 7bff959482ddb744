"""Formulas of the documentation as MathML: nothing to load, readable without scripts."""

from __future__ import annotations

import logging
import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

log = logging.getLogger("mkdocs.hooks")

# What pymdownx.arithmatex makes of $...$ and $$...$$.
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>',
    re.DOTALL,
)


# What is left where a formula was cut in two, as by a | in a table.
_CUT = re.compile(r"<t[dh]>[^<]*\$[^<$]*</t[dh]>")


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Hook of mkdocs: called with every page's body."""
    for cut in _CUT.findall(html):
        log.warning("%s: a formula is cut: %s", page.file.src_uri, cut)
    return _FORMULA.sub(_mathml, html)


def _mathml(match: re.Match[str]) -> str:
    display = "block" if match["tag"] == "div" else "inline"
    return convert(unescape(match["latex"]).strip(), display=display)
