"""Fill the page's template from a comparison."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ...common import CYCLE, STYLE
from ..figures import coefficients_of
from ..looks import GREY, looks_of
from ..numbers import count_text, date_text, heading_text, seeds_text
from ..pictures import Picture
from ..results import Comparison, Row, shorter_averages
from .summary import failures, published, summary
from .tables import cost_table, metric_tables, results_table, share_table

TEMPLATES = Path(__file__).parent / "templates"
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


def render(
    comparison: Comparison,
    pictures: Sequence[Picture] = (),
    baseline: Row | None = None,
) -> str:
    """The page of a `comparison` with its figures, as text.

    Differences are to the `baseline` unless the reader chooses another row. The page is
    one file: styles, script and pictures are inside, nothing is loaded. All text from the
    results is escaped, and a content security policy lets only the page's own script run.
    """
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    template = _environment().get_template("page.html.j2")
    parts: list[Callable] = [summary, failures, shorter_averages, published]
    parts += [coefficient_values, results_table, share_table, cost_table, metric_tables]
    return template.render(
        comparison=comparison,
        pictures=[
            {"picture": picture, "svg": _element(picture)} for picture in pictures
        ],
        baseline=baseline,
        looks=looks_of(comparison),
        css=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{base64.b64encode(digest).decode('ascii')}",
        **{part.__name__: part(comparison) for part in parts},
    )


@cache  # it keeps the compiled templates
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"date": date_text, "count": count_text, "seeds": seeds_text}
    environment.filters |= {"heading": heading_text, "yaml": _yaml}
    environment.filters |= {"breakable": re.compile("[^_/,=]*[_/,=]+|[^_/,=]+").findall}
    return environment


def _yaml(content: object) -> str:
    """Nested plain data as YAML, in the order in which it came."""
    return yaml.safe_dump(content or {}, sort_keys=False, allow_unicode=True)


def coefficient_values(comparison: Comparison) -> dict[str, dict]:
    """Group -> method, tasks, tensors and thousandths of the coefficients."""
    found = {}
    for row in comparison.finished:
        if saved := coefficients_of(row):
            values = (1000 * saved["values"]).round().astype(int).tolist()
            found[f"m{row.number}"] = {"method": row.label, **saved, "values": values}
    return found


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
