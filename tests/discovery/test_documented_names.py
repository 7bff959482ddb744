"""Every exported name says what it does, takes and gives."""

import dataclasses
import importlib
import inspect
import pkgutil
import re

import pytest

import fusion_plugins


def exported() -> list[tuple[str, str]]:
    """(module, name) of everything in an `__all__`."""
    packages = ["fusion_plugins"]
    packages += [
        f"fusion_plugins.{module.name}"
        for module in pkgutil.iter_modules(fusion_plugins.__path__)
    ]
    found = []
    for package in packages:
        names = getattr(importlib.import_module(package), "__all__", [])
        found += [(package, name) for name in names]
    return found


def parameters(value) -> list[str]:
    """Those of our own; a recipe's fields carry their help themselves."""
    if dataclasses.is_dataclass(value):
        entries = dataclasses.fields(value)
        return [e.name for e in entries if "help" not in e.metadata]
    called = value.__init__ if inspect.isclass(value) else value
    if not getattr(called, "__module__", "").startswith("fusion_plugins"):
        return []
    try:
        given = inspect.signature(called).parameters.values()
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [p.name for p in given if p.kind not in kinds and p.name != "self"]


def documented(value) -> str:
    """The docstring, and that of the dataclass that holds a method's options."""
    text = inspect.getdoc(value) or ""
    options = getattr(value, "Options", None)
    return text + (inspect.getdoc(options) or "" if options else "")


NAMES = exported()


@pytest.mark.parametrize("package, name", NAMES, ids=[f"{p}.{n}" for p, n in NAMES])
def test_it_is_documented(package, name):
    value = getattr(importlib.import_module(package), name)
    if not callable(value):
        return
    module = getattr(value, "__module__", "")
    if not module.startswith("fusion_plugins"):
        return
    own = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    assert own and len(own.split()) > 3
    if getattr(value, "_is_protocol", False) or issubclass_of_exception(value):
        return
    missing = [
        parameter
        for parameter in parameters(value)
        if not re.search(rf"\b{re.escape(parameter)}\b", documented(value))
    ]
    assert missing == []


def issubclass_of_exception(value) -> bool:
    return inspect.isclass(value) and issubclass(value, Exception)


def test_there_are_many():
    assert len(NAMES) > 60
