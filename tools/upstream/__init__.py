"""Lays a method out as a folder that FusionBench can take over unchanged.

Needs a source checkout of this project, with black and isort (extra `dev`): configs,
tests and the commit that files are marked with come from there.
"""

from .checkout import Checkout, find_checkout
from .errors import ExportError
from .export import plan_export
from .methods import METHODS, Method, find_method
from .plan import Plan

__all__ = [
    "METHODS",
    "Checkout",
    "ExportError",
    "Method",
    "Plan",
    "find_checkout",
    "find_method",
    "plan_export",
]
