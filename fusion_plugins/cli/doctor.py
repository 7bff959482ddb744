"""``fusion-plugins doctor``: what works on this machine, and what is missing."""

from __future__ import annotations

import inspect
import os
import platform
import re
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common import EXTRAS, how_to_get
from ..demo.pool_folder import cache_folder

if TYPE_CHECKING:
    from rich.table import Table

    from ..common.upstream import Private

_PACKAGE = "fusion-plugins"
_YES, _NO = "yes", "[bold red]no[/]"


def add_to(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser(
        "doctor", help="versions, what of FusionBench works here, devices, disk space"
    )
    parser.set_defaults(run=_examine)


def _examine(options: Namespace) -> int:
    """Print the tables; 1 if something that the core needs does not hold, else 0."""
    from rich.console import Console

    console, sound = Console(), True
    for title, heads, rows in (
        ("Packages", ("", "version", "needed", "fits"), _packages()),
        ("Private names of FusionBench", ("", "of", "for", "holds"), _names()),
        ("Devices", ("", ""), _devices()),
        ("Optional packages", ("", "version", "extra, how to install"), _optional()),
        ("Folders", ("", "free", "path"), _folders()),
    ):
        table = _table(title, heads)
        for *cells, holds in rows:
            table.add_row(*cells)
            sound &= holds
        console.print(table)
    console.print(
        "All that the core needs is here."
        if sound
        else "[bold red]Something that the core needs is missing: see the rows with no."
    )
    return 0 if sound else 1


def _table(title: str, heads: tuple[str, ...]) -> Table:
    from rich.table import Table

    table = Table(
        title=f"\n{title}", title_style="bold", title_justify="left", box=None
    )
    table.padding, table.pad_edge, table.show_header = (0, 1, 0, 0), False, any(heads)
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def _packages() -> Iterator[tuple[str, str, str, str, bool]]:
    """Python and every requirement of the core."""
    from packaging.requirements import Requirement

    yield "python", platform.python_version(), "", _YES, True
    for package in (_PACKAGE, "huggingface_hub"):  # which transformers chooses
        yield package, version(package), "", _YES, True
    for required in map(Requirement, requires(_PACKAGE) or ()):
        if required.marker is None or required.marker.evaluate({"extra": ""}):
            found = _version(required.name)
            # A release candidate of a newer version is not outside the range.
            fits = required.specifier.contains(found or "0", prereleases=True)
            fits = fits and found is not None
            needed, answer = str(required.specifier), _YES if fits else _NO
            yield required.name, found or "missing", needed, answer, fits


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _names() -> Iterator[tuple[str, str, str, str, bool]]:
    """The names that `common/upstream.py` uses, looked up in what is installed."""
    from rich.markup import escape

    from ..common.upstream import CORE, OPENCLIP, private_names

    without_openclip = how_to_get("open_clip") is not None
    for private in private_names().values():
        owner = private.owner.rpartition(":")[2].rpartition(".")[2]
        if without_openclip and private.needed_by == OPENCLIP:
            yield private.name, owner, private.needed_by, "?", True
            continue
        try:
            found = holds(private)
        except ImportError as error:
            found, owner = False, escape(" ".join(f"{owner}: {error}".split()))
        sound = found or private.needed_by != CORE
        yield private.name, owner, private.needed_by, _YES if found else _NO, sound


def holds(private: Private) -> bool:
    """Whether the owner has such an attribute, or its source speaks of one.

    Raises:
        ImportError: There is no such owner.
    """
    from ..common.compat import import_upstream

    module, _, name = private.owner.partition(":")
    owner: Any = import_upstream(module)
    if name:
        if not hasattr(owner, name):
            raise ImportError(f"{module} has no {name}")
        owner = getattr(owner, name)
    if hasattr(owner, private.name):
        return True
    kinds = owner.__mro__ if inspect.isclass(owner) else (owner,)
    home = module.partition(".")[0]
    sources = [
        inspect.getsource(kind)
        for kind in kinds
        if kind is owner or kind.__module__.partition(".")[0] == home
    ]
    return any(re.search(rf"\b{private.name}\b", source) for source in sources)


def _devices() -> Iterator[tuple[str, str, bool]]:
    import torch

    yield "CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads", True
    found = [
        torch.cuda.get_device_properties(place)
        for place in range(torch.cuda.device_count())
    ]
    for device in found:
        yield "CUDA", f"{device.name}, {device.total_memory / 2**30:.0f} GiB", True
    if not found:
        yield "CUDA", "no device", True
    yield "MPS", "yes" if torch.backends.mps.is_available() else "no", True


def _optional() -> Iterator[tuple[str, str, str, bool]]:
    from rich.markup import escape

    for module, extra in EXTRAS.items():
        command = how_to_get(module)
        if command is not None:
            yield module, "missing", escape(command), True
            continue
        found = getattr(import_module(module), "__version__", "installed")
        yield module, found, extra, True


def _folders() -> Iterator[tuple[str, str, str, bool]]:
    """Where large files go, and how much space is left there."""
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

    from ..pools.kept_images import FOLDER

    datasets = os.environ.get("HF_DATASETS_CACHE") or os.path.join(HF_HOME, "datasets")
    for name, folder in (
        ("models and data of the hub", HF_HUB_CACHE),
        ("prepared data sets", datasets),
        ("demo pools", cache_folder()),
        ("resized images", os.environ.get(FOLDER) or tempfile.gettempdir()),
        ("results, here", os.getcwd()),
    ):
        path = Path(folder).absolute()
        present = next(p for p in (path, *path.parents) if p.exists())
        free = shutil.disk_usage(present).free / 2**30
        yield name, f"{free:.1f} GiB", str(path), True
