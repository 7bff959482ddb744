"""The command line: ``fusion-plugins demo|pools|compare|convert|doctor|cite|completion``."""

from .program import main

__all__ = ["main"]
