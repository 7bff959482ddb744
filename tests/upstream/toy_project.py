"""A small project with the layout of this one, and every kind of import in it."""

from pathlib import Path

FILES = {
    "fusion_plugins/__init__.py": '''\
"""A toy."""

__version__ = "1.2.3"
_EXPORTS = {
    "AWDAlgorithm": "fusion_plugins.awd.algorithm",
    "Told": "fusion_plugins.told.model",
    "Unused": "fusion_plugins.unused",
}
''',
    "fusion_plugins/awd/__init__.py": '"""AWD."""\n',
    "fusion_plugins/awd/algorithm.py": '''\
"""The method."""

import fusion_plugins.plain
from fusion_plugins import Told
from fusion_plugins.shared.deep import (
    first_name_that_is_long,
    second_name_that_is_long,
)

from .. import options as checks
from ..shared import public
from . import functional
from .functional import solve


class AWDAlgorithm:
    """See :class:`fusion_plugins.unused.Thing` and :mod:`fusion_plugins.shared.deep`."""

    def run(self):
        from fusion_plugins import awd, late

        return fusion_plugins.plain.VALUE, late, awd, functional, solve, checks, public
''',
    "fusion_plugins/awd/functional.py": "def solve(): ...\n",
    "fusion_plugins/awd/not_needed.py": "",
    "fusion_plugins/late.py": "from .shared import deep\n",
    "fusion_plugins/common/options.py": "from typing import TYPE_CHECKING\n"
    "if TYPE_CHECKING:\n    from .typed import Kind\n",
    "fusion_plugins/plain.py": "VALUE = 1\n",
    "fusion_plugins/shared/__init__.py": "from .tables import find as public\n",
    "fusion_plugins/shared/deep.py": "first_name_that_is_long = 1\n"
    "second_name_that_is_long = 2\n",
    "fusion_plugins/shared/named.py": "class Adapter: ...\n",
    "fusion_plugins/shared/tables.py": '''\
from importlib import import_module

TABLE = {"pool": "named:Adapter", "other": "fusion_plugins.spelled_out"}


def find(key):
    """Not fusion_plugins.unused."""
    return import_module(f".{TABLE[key]}", __package__)
''',
    "fusion_plugins/spelled_out.py": "",
    "fusion_plugins/told/__init__.py": "",
    "fusion_plugins/told/model.py": "PACKAGES = ('fusion-plugins', 'torch')\n"
    "class Told: ...\n"
    "MESSAGE = 'see fusion_plugins.Told and fusion_plugins.unused'\n",
    "fusion_plugins/typed.py": "class Kind: ...\n",
    "fusion_plugins/unused.py": "",
    "fusion_plugins/upstream/pages/awd.md": "# AWD\n\nmethod={{home}}/awd\n",
    "tests/awd/test_awd_algorithm.py": """\
import unittest

from fusion_plugins import AWDAlgorithm
from fusion_plugins.awd.functional import solve
from fusion_plugins.late import deep

LOGGER = "fusion_plugins.awd.algorithm"


class TestToy(unittest.TestCase):
    def test_names(self):
        self.assertTrue(all([AWDAlgorithm, solve, deep, LOGGER]))
""",
    "config/method/awd.yaml": """\
# Toy.
#   fusion_bench method=awd modelpool=theirs taskpool=demo
#   fusion_bench method=awd modelpool=mine taskpool=dummy
#   fusion_bench method=other
defaults:
  - fusion_plugins/part@_here_ # shared
  - /method@base: task_arithmetic # any
  - _self_
_target_: fusion_plugins.AWDAlgorithm
alpha: 1 # see fusion_plugins/part.yaml
""",
    "config/method/awd_more.yaml": "defaults:\n  - awd\n  - _self_\nalpha: 2\n",
    "config/method/other.yaml": "_target_: fusion_plugins.Other\n",
    "config/method/fusion_plugins/part.yaml": "beta: 3\n",
    "config/modelpool/mine.yaml": "",
    "config/taskpool/demo.yaml": "",
}


def make_project(root: Path, **changes: str) -> Path:
    """Write the toy; `changes` replaces files, with / and . in names as __ and _."""
    for name, text in FILES.items():
        key = name.replace("/", "__").replace(".", "_")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(changes.get(key, text))
    return root
