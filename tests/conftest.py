"""Shared by all tests: one thread, and a tiny pool that is trained once per session.

Imports nothing slow: the process that only hands out files waits for this one.
"""

import gc
import os
import signal
import sys
import threading
from functools import cache

import pytest

# A shell's background jobs, and so their children, ignore Ctrl-C; kill tests need it.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

TINY_RECIPE = {
    "tasks": ("digits", "textures", "colours"),
    "width": 48,
    "depth": 2,
    "text_width": 32,
    "text_depth": 1,
    "embedding": 48,
    "train_images": 600,
    "test_images": 120,
    "pretrain_images": 200,
    "pretrain_noise": 0.1,
    "pretrain_negatives": 0.0,
    "pretrain_steps": 150,
    "expert_steps": 120,
    "batch_size": 32,
    "pretrain_lr": 2e-3,
    "expert_lr": 1.5e-3,
}


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Thousands of tiny operations: threads only get in each other's way."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def plugins_listed_once():
    """Each Fabric reads what all installed packages plug into it, file by file."""
    with pytest.MonkeyPatch.context() as patch:
        if "lightning" in sys.modules:  # those that the tests import come before this
            from lightning.fabric.utilities import registry

            patch.setattr(registry, "entry_points", cache(registry.entry_points))
        yield


@pytest.fixture(scope="session", autouse=True)
def blank_pictures():
    """Runs draw their pictures and write empty files: a run takes less than rendering."""
    from pictures import blank

    with blank():
        yield


@pytest.fixture
def rendered_pictures():
    """Runs in this test write whole pictures."""
    from pictures import rendered

    with rendered():
        yield


def pytest_collection_modifyitems(items):
    """Slow files first, where processes share the files: so all end at the same time."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """What was imported is no garbage: searching it takes half a second each time."""
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny_pool_root(tmp_path_factory):
    """The folder of a real, small pool of three tasks; do not write into it."""
    from fusion_plugins.demo import DemoRecipe, ensure_pool

    recipe = DemoRecipe(**TINY_RECIPE)
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers; who comes second waits for the first
    return ensure_pool(recipe, root / "demo" / "pool")


@pytest.fixture
def tiny_modelpool(tiny_pool_root):
    """FusionBench's model pool over `tiny_pool_root`."""
    from fusion_plugins.demo import demo_modelpool

    return demo_modelpool(root=tiny_pool_root)


@pytest.fixture(scope="module")
def no_pictures():
    """A comparison renders no page either: that takes most of a tiny one's time."""
    from pathlib import Path

    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    def leave_empty(figure, file, **options):
        if isinstance(file, Path):
            file.touch()
        else:  # a page's
            file.write(b'<svg width="0" height="0"></svg>')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", leave_empty)
        patch.setattr(ConstrainedLayoutEngine, "execute", lambda engine, figure: None)
        yield
