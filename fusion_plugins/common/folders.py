"""Paths that users give, and folders that a run writes into: checked early, one run's own."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from . import get_logger
from .upstream import models_of, program_of

log = get_logger(__name__)
_LONGEST_PART = 255  # bytes, on usual file systems

# Folders and whose Fabric writes there, until the process ends; a fork has none yet.
_HELD: dict[tuple[int, Path], tuple[FileLock, weakref.ref[Any]]] = {}


def require_path(name: str, value: object) -> str:
    """A path as a string, or ValueError."""
    if not isinstance(value, (str, os.PathLike)) or not str(value).strip():
        raise ValueError(f"{name} is {value!r}, expected a path.")
    if str(value) == "None":
        raise ValueError(f"{name} is the text 'None'; no path is null, in Python None.")
    if "\0" in str(value):
        raise ValueError(f"{name} is {value!r}: a path has no NUL character.")
    for part in Path(value).parts:
        if len(os.fsencode(part)) > _LONGEST_PART:
            raise ValueError(
                f"{name}: '{part[:40]}...' in its path is longer than {_LONGEST_PART}"
                " bytes, which no file or folder can be named."
            )
    return str(value)


def require_names(names: Iterable[object]) -> None:
    """Raise TypeError unless a pool's `names` of models are text."""
    for name in names:
        if not isinstance(name, str):
            raise TypeError(
                f"The model pool calls a model {name!r}, a {type(name).__name__}; names of"
                f" models are text, such as '{name}'."
            )


def require_paths(option: str, given: Any) -> dict[str, str]:
    """Paths by the names of models as text, or ValueError; `option` gave them."""
    if not isinstance(given, Mapping):
        raise ValueError(
            f"{option} is {given!r}, expected paths by the names of models, such as"
            " {_pretrained_: models/base, mnist: models/mnist}."
        )
    paths = {n: require_path(f"{option}.{n}", path) for n, path in given.items()}
    for name, path in paths.items():
        if "${" in path:
            raise ValueError(
                f"{option}.{name} is {path!r}, in which ${{...}} would mean another value"
                " of the configuration. Rename the folder."
            )
    return paths


def require_folder(name: str, folder: str | Path) -> Path:
    """A folder that files can be written into, created; ValueError names the option."""
    path = Path(folder).expanduser()
    problem = obstacle(path)
    if problem is not None:
        raise ValueError(f"{name}: {path} {problem}, expected a folder.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have had the same idea
    except OSError as error:
        raise ValueError(
            f"{name}: {path} cannot be written into ({error.strerror}). Give another"
            " folder."
        ) from error
    return path


def obstacle(path: Path) -> str | None:
    """What stands where a folder is wanted, to follow its path in a message."""
    if path.is_symlink() and not path.exists():
        return "is a link to nothing"
    return "is a file" if path.exists() and not path.is_dir() else None


def unwritable(path: Path) -> str | None:
    """Why nothing can be written below a folder that may not exist yet."""
    for part in (path, *path.absolute().parents):
        problem = obstacle(part)
        if problem is None and part.exists() and not os.access(part, os.W_OK | os.X_OK):
            problem = "is read-only"
        if problem is not None:
            return f"{part} {problem}"
        if part.exists():
            break
    return None


def check_end(program: Any, log_dir: str | None) -> None:
    """Raise ValueError if FusionBench's program could not save or evaluate at the end."""
    taskpool: Any = getattr(program, "taskpool", None)
    if hasattr(taskpool, "check_samples"):
        taskpool.check_samples()
    for option in ("merged_model_save_path", "report_save_path"):
        named = getattr(program, option, None)
        if named is None:
            continue
        path = Path(str(named).replace("{log_dir}", str(log_dir)))
        problem = unwritable(path.parent)
        if path.is_dir() and option == "report_save_path":
            problem = f"{path} is a folder"
        if path.is_file() and option == "merged_model_save_path" and not path.suffix:
            problem = f"{path} is a file"
        if option == "merged_model_save_path":
            problem = problem or _input_at(program, path.resolve())
        if os.sep not in str(named) and option == "report_save_path":
            problem = "FusionBench wants a folder in it"
        if log_dir is None and "{log_dir}" in str(named):
            problem = "no logger and no path.log_dir says where {log_dir} is"
        if problem is not None:
            raise ValueError(
                f"{option}={named}: {problem}. Choose another place, such as"
                f" {option}=outputs/{path.name}."
            )


def _input_at(program: Any, place: Path) -> str | None:
    """What model of the pool is read from files that saving there would replace."""
    for name, config in models_of(getattr(program, "modelpool", None), {}).items():
        for file in _files_of(config):
            real = file.resolve()
            if place in (real, real.parent, file.parent.resolve()):
                return f"the pool's model '{name}' is read from there"
    return None


def _files_of(config: object, below: str = "") -> Iterator[Path]:
    """The files that a model's config names, or that are in folders that it names."""
    if isinstance(config, Mapping):
        for value in config.values():
            yield from _files_of(value, str(config.get("subfolder") or ""))
    elif isinstance(config, (str, os.PathLike)):
        path = os.path.join(config, below)
        found = Path(path).glob("*") if os.path.isdir(path) else [Path(path)]
        yield from filter(os.path.isfile, found)


def results_folder(method: Any) -> Path | None:
    """Where a method writes its results: its logger's folder, or the program's.

    Two programs that began in one second are given one folder; the second one gets a
    folder beside it. None outside a program without loggers: nothing says where.
    ValueError if it cannot be written into, or what the program saves could not be.
    """
    folder, program = method.log_dir, program_of(method, None)
    if folder is None:
        folder = (getattr(program, "path", None) or {}).get("log_dir")
    check_end(program, folder)
    return None if folder is None else claimed(Path(folder).absolute(), method.fabric)


def claimed(folder: Path, owner: Any) -> Path:
    """A folder that is a run's own until its process ends; one beside it if it is taken."""
    for number in count(1):
        path = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        key = os.getpid(), path
        if key in _HELD and _HELD[key][1]() is owner:
            return path
        lock = FileLock(require_folder("log folder", path) / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        if number > 1:
            log.warning("Another run writes into %s; this one into %s", folder, path)
        _HELD[key] = lock, weakref.ref(owner)
        return path
    raise AssertionError  # count() has no end
