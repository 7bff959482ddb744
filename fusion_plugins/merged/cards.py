"""Model cards: how a merged model came about."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version

_PACKAGES = ("fusion-plugins", "fusion-bench", "torch", "transformers", "lightning")


def model_card(
    title: str, method: Mapping, experts: Mapping[str, str], notes: Sequence[str]
) -> str:
    """Markdown that says how a merged model came about."""
    lines = [f"# {title}", "", *notes, "", "## Merged from", ""]
    lines += [f"- `{name}`: {source}" for name, source in experts.items()]
    lines += ["", "## Method", "", "```yaml"]
    lines += [
        f"{key}: {json.dumps(value, default=str)}" for key, value in method.items()
    ]
    lines += ["```", "", "## Made with", ""]
    lines += [f"- {name} {version(name)}" for name in _PACKAGES]
    lines += [f"- Python {platform.python_version()}", ""]
    return "\n".join(lines)
