"""What a program that Hydra started tells the person who typed the command."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partialmethod

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import CompactHydraException, InstantiationException
from tqdm import tqdm

from .upstream import print_profile

_HARMLESS = "Symbolic link already exists"  # from a sweep's second job on
_INTERRUPTED = 130  # as shells say it of Ctrl-C


def full_errors() -> bool:
    """Whether the user asked Hydra for whole tracebacks."""
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


@contextmanager
def one_line_errors(again: str) -> Iterator[None]:
    """Under Hydra, an error becomes one line, and Ctrl-C says how to go on.

    Then the text `again` follows: what the same command does when it is started again.
    """
    try:
        yield
    except KeyboardInterrupt:
        if not GlobalHydra().is_initialized():
            raise
        _keep_quiet(SystemExit)
        sys.stderr.write(f"\nInterrupted. {again}\n")
        raise SystemExit(_INTERRUPTED) from None
    except Exception as error:
        if full_errors() or not GlobalHydra().is_initialized():
            raise
        _keep_quiet(CompactHydraException)
        text = f"{_named(error)} (HYDRA_FULL_ERROR=1 shows where)"
        raise CompactHydraException(" ".join(text.split())) from error


def _named(error: Exception) -> str:
    """The error, or the package for want of which there is no class to build."""
    cause: BaseException = error
    while isinstance(error, InstantiationException) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, ModuleNotFoundError) and cause is not error:
        key = str(error).rpartition("full_key: ")[2]
        return f"{key} needs the package {cause.name}: pip install {cause.name}"
    return f"{type(error).__name__}: {error}"


def _keep_quiet(kind: type[BaseException]) -> None:
    """FusionBench's command would log a traceback of this."""
    log = logging.getLogger("fusion_bench.scripts.cli")
    log.addFilter(lambda record: not isinstance(record.msg, kind))


@contextmanager
def quiet() -> Iterator[None]:
    """On the screen our own lines, and only warnings of others; files hold everything."""
    from fusion_bench.mixins import SimpleProfilerMixin
    from transformers.utils import logging as transformers_logging

    profile = print_profile(SimpleProfilerMixin)
    print_profile.put(SimpleProfilerMixin, lambda self, title=None: None)
    root, level = logging.getLogger(), transformers_logging.get_verbosity()
    theirs = [h for h in root.handlers if not isinstance(h, logging.FileHandler)]
    ours = logging.StreamHandler()
    ours.setFormatter(_Plain())
    ours.addFilter(_for_people)
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    root.handlers = [h for h in root.handlers if h not in theirs] + [ours]
    try:
        with warnings.catch_warnings():
            # Of lightning's logger: a run's lock is in its log folder, too.
            warnings.filterwarnings("ignore", "Experiment logs directory")
            yield
    finally:
        print_profile.put(SimpleProfilerMixin, profile)
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
        root.handlers = [h for h in root.handlers if h is not ours] + theirs


@contextmanager
def vanishing() -> Iterator[None]:
    """Progress bars go when they are done; but for warnings, nothing else appears."""
    init = tqdm.__init__
    tqdm.__init__ = partialmethod(init, leave=False)
    every = logging.getLogger().handlers
    screens = {h: h.level for h in every if type(h) is logging.StreamHandler}
    for handler in screens:
        handler.setLevel(logging.WARNING)
    try:
        # A real file: FusionBench asks standard output for its file number.
        with (
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            redirect_stdout(nowhere),
        ):
            yield
    finally:
        tqdm.__init__ = init
        for handler, level in screens.items():
            handler.setLevel(level)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"warning: {text}"


def _for_people(record: logging.LogRecord) -> bool:
    own = record.name.startswith("fusion_plugins")
    return own or (
        record.levelno >= logging.WARNING and not str(record.msg).startswith(_HARMLESS)
    )
