"""The command line: ``fusion-plugins demo|pools|compare|convert|cite``."""

from .program import main

__all__ = ["main"]
