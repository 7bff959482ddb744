"""What a run is: everything that decides its result, and whether a checkpoint is its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

META = "state.json"
FORMAT = 1


def check_resume(resume: str, identity: Mapping) -> None:
    """Raise unless `resume` can be followed, as far as is known of the run already.

    Args:
        resume: ``auto``, ``never``, or the path of a checkpoint.
        identity: What is known of the run's identity.

    Raises:
        ValueError: It is a path that holds no checkpoint, or one of another run.
    """
    if resume in ("auto", "never"):
        return
    path = Path(resume)
    saved = read_meta(path)["identity"]
    wanted = json.loads(json.dumps(identity, default=str))
    changed = [
        f"{key}: {saved[key]!r} -> {wanted[key]!r}"
        for key in sorted(saved.keys() & wanted.keys())  # older versions saved less
        if saved[key] != wanted[key]
    ]
    if changed:
        raise ValueError(
            f"resume: {path} belongs to a run with other settings ({'; '.join(changed)})."
            " Use the same settings, or resume=never to start anew."
        )


def read_meta(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself.

    Raises:
        ValueError: It is none, or damaged.
    """
    file = path / META
    if not file.is_file():
        raise ValueError(
            f"resume: {path} holds no checkpoint ({META} is missing). Give the folder"
            " of one step, or 'auto', or 'never'."
        )
    try:
        meta = json.loads(file.read_text())
        newer = meta.get("format", FORMAT) != FORMAT
        lacking = {"step", "identity", "extra"} - meta.keys()
    except (ValueError, AttributeError) as error:
        raise ValueError(f"The checkpoint {path} is damaged: {error}.") from error
    if newer:
        raise ValueError(
            f"The checkpoint {path} has format {meta['format']}, this version reads"
            f" {FORMAT}. Update the package."
        )
    if lacking:
        raise ValueError(f"The checkpoint {path} is damaged: no {sorted(lacking)}.")
    return meta
