"""One run, many methods: table, report, plots."""

from ..common import lazy_exports

# Loaded on first use: gathering results needs none of what running methods needs.
__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "CompareProgram": ".program",
        "gather": ".gathering",
        "load_results": ".loading",
    },
)
