"""One self-contained HTML page about a comparison, made from its JSON files alone."""

from .page import write_report

__all__ = ["write_report"]
