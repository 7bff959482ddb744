"""The figures as parts of the page: their colours follow its theme, its filters hide rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from markupsafe import Markup

from ...common import CYCLE, STYLE
from ..figures import coefficients_of
from ..looks import GREY
from ..pictures import Picture
from ..results import Comparison

# Colours of the figures -> their names in the page's style sheet.
_VARIABLES = {
    **{colour: f"c{place}" for place, colour in enumerate(CYCLE)},
    STYLE["text.color"]: "text",
    STYLE["axes.edgecolor"]: "muted",
    STYLE["grid.color"]: "grid",
    STYLE["figure.facecolor"]: "surface",
    GREY: "grey",
    "#000000": "text",
}
# A row of the comparison; a class, for it is in many figures.
_GROUP = re.compile(r"m\d+")


def inline_pictures(pictures: Sequence[Picture]) -> list[dict]:
    """What the template shows: each picture and its SVG element."""
    return [{"picture": picture, "svg": _element(picture)} for picture in pictures]


def coefficient_values(comparison: Comparison) -> dict[str, dict]:
    """Group -> method, tasks, tensors and thousandths of the coefficients."""
    found = ((row, coefficients_of(row)) for row in comparison.finished)
    return {
        f"m{row.number}": {
            "method": row.label,
            "tasks": saved["tasks"],
            "keys": saved["keys"],
            "values": (1000 * saved["values"]).round().astype(int).tolist(),
        }
        for row, saved in found
        if saved
    }


def _element(picture: Picture) -> Markup:
    """The picture without namespaces; ids are the picture's own, lengths are short."""
    root = ElementTree.fromstring(picture.svg)
    for parent in [*root.iter()]:
        for child in [*parent]:
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
        node.attrib = {k.rpartition("}")[2]: v for k, v in node.attrib.items()}
        if group := _GROUP.fullmatch(node.get("id", "")):
            node.set("class", group[0])
            del node.attrib["id"]
        for name in {"d", "x", "y", "points"} & set(node.attrib):
            node.set(name, re.sub(r"(\.\d\d)\d+", r"\1", node.attrib[name]))
    del root.attrib["width"], root.attrib["height"]
    root.attrib |= {"role": "img", "aria-label": picture.title}
    root.set("style", "stroke-linejoin:round;stroke-linecap:butt")
    text = ElementTree.tostring(root, encoding="unicode")
    used = set(re.findall(r"#([\w-]+)[\")]", text))
    text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", text)
    text = re.sub(r'(id="|href="#|url\(#)', rf"\1{picture.name}-", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "sans-serif", text)
    for colour, name in _VARIABLES.items():
        text = text.replace(colour, f"var(--{name},{colour})")
    return Markup(text)
