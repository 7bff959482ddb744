"""What a comparison will take: time and memory as measured so far, and downloads."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from statistics import mean
from typing import Any, NamedTuple

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from rich.filesize import decimal

from ..modelpool.folders import source_of
from .cells import Cell
from .inputs import cached_repository

# A model's weights in other formats, which are not fetched where safetensors are.
_OTHER_WEIGHTS = (".bin", ".h5", ".msgpack", ".ot", ".onnx", ".pt", ".pth")
_WAIT = 5.0  # seconds, for the hub's answer


class Costs(NamedTuple):
    """Seconds, and peak memory in MiB."""

    seconds: float
    mib: float

    def __str__(self) -> str:
        return f"{timedelta(seconds=round(self.seconds))}, {decimal(int(self.mib * 2**20))}"


def costs(cell: Cell, records: Sequence[Mapping]) -> dict[str, Costs]:
    """Device -> what a cell will take there: the mean of what finished cells took.

    Those are of the same row, or else of the same method with other options.
    """
    done = [r for r in records if r["status"] == "done"]
    same = [r for r in done if r["label"] == cell.method.label]
    near = same or [r for r in done if r["method"] == cell.method.name]
    found: dict[str, list[Costs]] = {}
    for record in near:
        seconds = sum(part or 0.0 for part in record["seconds"].values())
        peak = record["peak_memory_mib"]
        measured = Costs(seconds, peak["cuda"] or peak["cpu"] or 0.0)
        found.setdefault(str(record["device"]), []).append(measured)
    return {
        device: Costs(*map(mean, zip(*measured, strict=True)))
        for device, measured in found.items()
    }


def totals(cells: Sequence[Cell], records: Sequence[Mapping]) -> list[str]:
    """A line for each device on what the cells take together, one on those not known."""
    known = [found for cell in cells if (found := costs(cell, records))]
    lines = []
    for device in dict.fromkeys(name for found in known for name in found):
        seconds, mib = zip(*(f[device] for f in known if device in f), strict=True)
        both = Costs(sum(seconds), max(mib))
        lines.append(f"{len(seconds)} of {len(cells)} cells on {device}: {both}.")
    if unknown := len(cells) - len(known):
        lines.append(
            f"{unknown} of {len(cells)} cells: not known until one of the same method is"
            " finished, here or in a folder of add=."
        )
    return lines


def downloads(*configs: Mapping) -> str:
    """One line on what pools with these configs fetch from the hub first."""
    wanted = dict.fromkeys(found for config in configs for found in _named(config))
    missing = [found for found in wanted if not cached_repository(found.name)]
    if not missing:
        return "Downloads: none."
    kinds = Counter(found.kind for found in missing)
    counts = " and ".join(
        f"{count} {kind}{'s' if count > 1 else ''}"
        for kind, count in sorted(kinds.items())
    )
    try:
        size = decimal(sum(map(_size, missing)))
    except Exception as error:  # noqa: BLE001 - of whichever HTTP library the hub uses
        size = f"of unknown size ({type(error).__name__} from the hub)"
    return f"Downloads: {counts}, {size}."


class _Repository(NamedTuple):
    kind: str
    name: str
    folder: str = ""


def _named(config: object) -> Iterator[_Repository]:
    """Everything on the hub that a config names."""
    if not isinstance(config, Mapping):
        return
    name = source_of(config)
    if name is not None and _is_on_hub(name):
        yield _Repository("model", name, config.get("subfolder") or "")
    name = config.get("path")
    if str(config.get("_target_")).endswith(".load_dataset") and _is_on_hub(name):
        yield _Repository("dataset", str(name))
    for model in (config.get("models") or {}).values():
        if isinstance(model, str) and _is_on_hub(model):
            yield _Repository("model", model)
    for value in config.values():
        yield from _named(value)


def _is_on_hub(name: object) -> bool:
    try:
        validate_repo_id(str(name))
    except HFValidationError:
        return False
    return not os.path.exists(str(name))


def _size(wanted: _Repository) -> int:
    """Bytes of what is fetched of a repository."""
    info: Any = HfApi().repo_info(
        wanted.name, repo_type=wanted.kind, files_metadata=True, timeout=_WAIT
    )
    files = {s.rfilename: s.size or 0 for s in info.siblings or ()}
    files = {n: size for n, size in files.items() if n.startswith(wanted.folder)}
    if any(name.endswith(".safetensors") for name in files):
        files = {n: s for n, s in files.items() if not n.endswith(_OTHER_WEIGHTS)}
    return sum(files.values())
