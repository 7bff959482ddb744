"""FusionBench's modules that need Python 3.12 can be imported, and nothing is left over."""

import importlib
import sys
import typing

import pytest

from fusion_plugins.common.compat import import_upstream

HAS_OVERRIDE = sys.version_info >= (3, 12)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module, give its name, forget it afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delattr(typing, "override", raising=False)
    name = "needs_a_newer_python"

    def write(text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        return name

    yield write
    sys.modules.pop(name, None)


def test_upstreams_openclip_pool_is_found_by_its_lazy_name_too():
    pool = import_upstream("fusion_bench.modelpool.openclip_vision")
    from fusion_bench.modelpool import OpenCLIPVisionModelPool

    assert pool.OpenCLIPVisionModelPool is OpenCLIPVisionModelPool
    assert hasattr(typing, "override") == HAS_OVERRIDE


def test_the_name_is_lent_only_while_importing(module):
    name = module("from typing import override\n@override\ndef f(): return 1\n")
    assert import_upstream(name).f() == 1
    assert not hasattr(typing, "override")


def test_modules_that_need_nothing_see_nothing(module):
    name = module("import typing\nlent = hasattr(typing, 'override')\n")
    assert import_upstream(name).lent is False


def test_other_missing_names_are_errors_and_nothing_stays(module):
    name = module("from typing import override, no_such_name\n")
    with pytest.raises(ImportError, match="no_such_name"):
        import_upstream(name)
    assert not hasattr(typing, "override")
    with pytest.raises(ImportError, match="no_such_module"):
        import_upstream(module("import no_such_module\n"))
