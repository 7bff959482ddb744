"""One self-contained HTML page about a comparison."""

from .page import render

__all__ = ["render"]
