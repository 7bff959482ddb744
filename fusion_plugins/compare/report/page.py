"""Fill the page's template from a comparison."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..looks import looks_of
from ..numbers import count_text, date_text, heading_text
from ..pictures import Picture
from ..results import Comparison, Row, shorter_averages
from .pictures import coefficient_values, inline_pictures
from .published import published
from .summary import failures, summary
from .tables import cost_table, metric_tables, results_table, share_table

TEMPLATES = Path(__file__).parent / "templates"
# What the templates show of a comparison, by the functions' names.
_PARTS: tuple[Callable, ...] = (
    summary,
    failures,
    shorter_averages,
    results_table,
    share_table,
    cost_table,
    metric_tables,
    published,
    coefficient_values,
)


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
    return template.render(
        comparison=comparison,
        pictures=inline_pictures(pictures),
        baseline=baseline,
        looks=looks_of(comparison),
        css=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{base64.b64encode(digest).decode('ascii')}",
        **{part.__name__: part(comparison) for part in _PARTS},
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
    environment.filters |= {"date": date_text, "count": count_text}
    environment.filters |= {"heading": heading_text, "yaml": _yaml}
    environment.filters["breakable"] = _breakable
    return environment


def _breakable(text: str) -> list[str]:
    """A name in parts between which a narrow column may break it."""
    return re.findall(r"[^_/,=]*[_/,=]+|[^_/,=]+", text)


def _yaml(content: object) -> str:
    """Nested plain data as YAML, in the order in which it came."""
    return yaml.safe_dump(content or {}, sort_keys=False, allow_unicode=True)
