"""Where a merge reads and writes: looked at before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..common.folders import unwritable
from ..common.identity import file_identity
from ..task_vectors.files import safetensors_files
from .folders import ModelFolder


def input_files(models: Mapping[str, ModelFolder]) -> dict[str, list[Path]]:
    """Model name -> the files that it is merged from."""
    return {
        name: [*safetensors_files(m.path, m.label), m.path / "config.json"]
        for name, m in models.items()
    }


def identities(files: Mapping[str, Sequence[Path]]) -> dict[str, list]:
    """What tells one version of the input files from another, and their order."""
    found = {name: [file_identity(f) for f in paths] for name, paths in files.items()}
    return found | {"order of models": list(files)}


def check_unchanged(files: Mapping[str, Sequence[Path]], before: Mapping) -> None:
    """Raise ValueError if an input is no longer what :func:`identities` saw."""
    now = identities(files)
    for name, found in before.items():
        if now[name] != found:
            raise ValueError(
                f"The files of model '{name}' changed while they were merged. Start the"
                " same command again with method.overwrite=true."
            )


def check_apart(path: Path, files: Mapping[str, Sequence[Path]]) -> None:
    """Raise ValueError if an input stands in the folder that is written to."""
    for name, paths in files.items():
        for file in paths:
            if file.resolve().parent == path.resolve():
                raise ValueError(
                    f"model '{name}' is merged from {file}, which is in the folder of the"
                    f" result, {path}. Choose another folder with method.output."
                )


def output_path(
    output: str | None, program: object | None, log_dir: str | None
) -> Path:
    """The folder of the merged model, where one can be written.

    Args:
        output: The folder; None for the program's ``merged_model_save_path``.
        program: The FusionBench program that runs the method, if one does.
        log_dir: What ``{log_dir}`` in a path means.

    Raises:
        ValueError: No folder is named, or a file, a dangling link or a folder without
            permission stands in its way.
    """
    named = output or getattr(program, "merged_model_save_path", None)
    if not named or ("{log_dir}" in str(named) and log_dir is None):
        raise ValueError(
            f"There is no folder for the merged model ({named!r}). Set"
            " method.output=FOLDER, or the program's merged_model_save_path=FOLDER."
        )
    path = Path(str(named).replace("{log_dir}", str(log_dir))).expanduser()
    problem = unwritable(path / ".merge")
    if problem is not None:
        raise ValueError(
            f"The merged model cannot be written to {path}: {problem}. Choose another"
            " folder with method.output."
        )
    return path
