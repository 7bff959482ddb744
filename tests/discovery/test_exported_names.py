"""Every name that a room exports is documented, with its arguments."""

import dataclasses
import importlib
import inspect
import pkgutil
import re

import pytest

import fusion_plugins


def exporting_rooms() -> list[str]:
    """The package, and every room whose `__all__` names what others may use."""
    found = pkgutil.walk_packages(fusion_plugins.__path__, "fusion_plugins.")
    names = ["fusion_plugins", *(m.name for m in found if m.ispkg)]
    return [n for n in names if hasattr(importlib.import_module(n), "__all__")]


def undocumented(name: str, value: object) -> str | None:
    """What the docstring of a class or function leaves out."""
    own = vars(value)
    text = own.get("__doc__", value.__doc__)
    if not text:
        return f"{name} has no docstring"
    # A class without an `__init__` takes what its base takes.
    takes = own.get("__init__") if inspect.isclass(value) else value
    named = set(inspect.signature(takes).parameters if takes else {})
    if dataclasses.is_dataclass(value):
        named -= {f.name for f in dataclasses.fields(value) if "help" in f.metadata}
    missing = [
        parameter
        for parameter in named - {"self", "args", "kwargs"}
        if not re.search(rf"\b{parameter}\b", text)
    ]
    return f"{name}: {', '.join(sorted(missing))}" if missing else None


@pytest.mark.parametrize("room", exporting_rooms())
def test_exported_names_are_documented(room):
    module = importlib.import_module(room)
    exported = {name: getattr(module, name) for name in module.__all__}
    checked = {
        name: value
        for name, value in exported.items()
        if inspect.isroutine(value) or inspect.isclass(value)
        if value.__module__.startswith("fusion_plugins")
    }
    assert checked
    found = [undocumented(name, value) for name, value in checked.items()]
    assert list(filter(None, found)) == []
