"""Fill the page's template from a comparison."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..numbers import count_text, date_text, heading_text
from ..results import Comparison
from .charts import bar_chart, time_chart
from .curves import training_curves
from .heatmaps import coefficient_maps, cosine_tables
from .published import published
from .radar import radar_chart
from .summary import failures, summary
from .tables import metric_tables, results_table, share_table

TEMPLATES = Path(__file__).parent / "templates"
COLOURS = 6  # --c0 to --c5 in page.css; dashes tell further methods apart
# What the templates show of a comparison, by the functions' names.
_PARTS: tuple[Callable, ...] = (
    summary,
    failures,
    results_table,
    share_table,
    metric_tables,
    published,
)
_PARTS += (bar_chart, radar_chart, time_chart)
_PARTS += (coefficient_maps, cosine_tables, training_curves)


def render(comparison: Comparison) -> str:
    """The page of a `comparison`, as text.

    The page is one file: styles, script and pictures are inside, nothing is loaded. All
    text from the results is escaped, and a content security policy lets only the page's
    own script run.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"date": date_text, "count": count_text}
    environment.filters |= {"heading": heading_text, "yaml": _yaml}
    environment.filters["breakable"] = _breakable
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return environment.get_template("page.html.j2").render(
        comparison=comparison,
        style=_styles(comparison),
        css=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{base64.b64encode(digest).decode('ascii')}",
        **{part.__name__: part(comparison) for part in _PARTS},
    )


def _styles(comparison: Comparison) -> dict[int, str]:
    """Row number -> classes of its colour and dash, the same in every chart."""
    merged = [row for row in comparison.rows if not row.is_reference]
    styles = {row.number: f"reference {row.method}" for row in comparison.rows}
    for place, row in enumerate(merged):
        styles[row.number] = f"c{place % COLOURS} d{place // COLOURS % 4}"
    return styles


def _breakable(text: str) -> list[str]:
    """A name in parts between which a narrow column may break it."""
    return re.findall(r"[^_/,=]*[_/,=]+|[^_/,=]+", text)


def _yaml(content: object) -> str:
    """Nested plain data as YAML, in the order in which it came."""
    return yaml.safe_dump(content or {}, sort_keys=False, allow_unicode=True)
