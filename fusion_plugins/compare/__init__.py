"""One run, many methods: table, report, plots."""

import importlib

# Loaded on first use: gathering results needs none of what running methods needs.
_EXPORTS = {
    "CompareProgram": ".program",
    "gather": ".gathering",
    "load_results": ".results",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name], __name__), name)
