"""The folder a merge is written to, and what a later run may keep of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import filelock
import safetensors.torch
from torch import Tensor

from ..common.logging import get_logger
from ..task_vectors.files import safetensors_files
from .shards import Shard, index_of

log = get_logger(__name__)

INDEX = "model.safetensors.index.json"
_FORMAT = 1  # of the manifest
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.index.json")


def identities(models: Mapping[str, Path]) -> dict[str, list]:
    """What tells one version of the input files from another.

    Args:
        models: Model name -> folder or file.

    Returns:
        Model name -> list of [file name, bytes, time of last change in ns].
    """
    found = {}
    for name, path in models.items():
        files = [(f.name, f.stat()) for f in safetensors_files(path, f"model '{name}'")]
        found[name] = [[n, stat.st_size, stat.st_mtime_ns] for n, stat in files]
    return found


class OutputFolder:
    """Finished shards and statistics of one merge; nothing of another one.

    ``.merge/manifest.json`` in the folder names the options and input files (with sizes
    and times of change). What stands beside it is used again only if they are the same.
    Use it as a context: it keeps other runs out of the folder.

    Args:
        path: The folder; made if it does not exist.
        options: Everything that determines the result, as plain JSON values.
        inputs: As from :func:`identities`.
        overwrite: Delete the shards of another merge instead of refusing.

    Raises:
        ValueError: Another run writes there, or the folder holds other weights.
    """

    def __init__(
        self, path: Path, options: Mapping, inputs: Mapping, overwrite: bool = False
    ):
        self.path, self._overwrite = path, overwrite
        self._private = path / ".merge"
        self._manifest = self._private / "manifest.json"
        described = {
            "format": _FORMAT,
            "options": dict(options),
            "inputs": dict(inputs),
        }
        text = json.dumps(described, sort_keys=True)
        self._state = described | {
            "fingerprint": hashlib.sha256(text.encode()).hexdigest(),
            "shards": {},
        }
        self._guard = filelock.FileLock(str(self._private / "lock"))
        self._own = threading.Lock()

    def __enter__(self) -> OutputFolder:
        self._private.mkdir(parents=True, exist_ok=True)
        try:
            self._guard.acquire(timeout=0)
        except filelock.Timeout as error:
            raise ValueError(
                f"Another run writes to {self.path} now. Wait for it, or choose another"
                " folder with method.output."
            ) from error
        try:
            self._take_over()
        except BaseException:
            self._guard.release()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._guard.release()

    def _take_over(self) -> None:
        held = self._read_manifest()
        if held.get("fingerprint") == self._state["fingerprint"]:
            self._state["shards"] = held["shards"]
            return
        weights = [f for pattern in _WEIGHTS for f in self.path.glob(pattern)]
        own = {*held.get("shards", {}), INDEX} if held else set()
        foreign = sorted(f.name for f in weights if f.name not in own)
        if foreign or (weights and not self._overwrite):
            raise ValueError(self._refusal(held, foreign))
        for file in weights:
            file.unlink()
        for file in self._private.iterdir():
            if file.name != "lock":
                file.unlink()
        self._write_manifest()

    def _read_manifest(self) -> dict:
        if not self._manifest.is_file():
            return {}
        return json.loads(self._manifest.read_text())

    def _refusal(self, held: dict, foreign: Sequence[str]) -> str:
        if foreign:
            return (
                f"{self.path} holds weights that are no part of a merge: {foreign[:5]}."
                " Choose an empty or new folder with method.output."
            )
        parts = [p for p in ("options", "inputs") if held.get(p) != self._state[p]]
        return (
            f"{self.path} holds a merge with other {' and '.join(parts) or 'versions'}"
            f" ({_difference(held, self._state)}). Choose another folder with"
            " method.output, or set method.overwrite=true to replace it."
        )

    def _write_manifest(self) -> None:
        partial = self._manifest.with_suffix(".part")
        partial.write_text(json.dumps(self._state, indent=2))
        os.replace(partial, self._manifest)

    # Shards

    def is_done(self, shard: Shard) -> bool:
        """Whether the shard stands there complete."""
        file = self.path / shard.file
        size = self._state["shards"].get(shard.file)
        return size is not None and file.is_file() and file.stat().st_size == size

    def partial(self, shard: Shard) -> Path:
        """Where a shard is written until it is complete."""
        return self._private / f"{shard.file}.part"

    def publish(self, shard: Shard) -> None:
        """Give a complete shard its name, and remember it."""
        with self._own:
            # First remembered: a file that is not known would count as someone else's.
            self._state["shards"][shard.file] = self.partial(shard).stat().st_size
            self._write_manifest()
            os.replace(self.partial(shard), self.path / shard.file)

    def check_space(self, needed: int) -> None:
        """Raise ValueError if the disk cannot hold `needed` bytes more."""
        kept = sum(f.stat().st_size for f in self._private.glob("*.safetensors.part"))
        free = shutil.disk_usage(self.path).free + kept
        if free < needed:
            raise ValueError(
                f"The merge needs {needed / 1e9:.1f} GB in {self.path}, and its disk has"
                f" {free / 1e9:.1f} GB free. Free space, choose another disk with"
                " method.output, or a narrower method.dtype."
            )

    def complete(self, shards: list[Shard]) -> None:
        """Write the index, which makes the folder a model, and drop what was kept."""
        partial = self._private / "index.part"
        partial.write_text(json.dumps(index_of(shards), indent=2))
        os.replace(partial, self.path / INDEX)
        for file in self._private.glob("*.safetensors"):
            file.unlink()

    # Statistics of the task vectors, which cost a walk over all files each

    def statistics(self, name: str) -> dict[str, Tensor] | None:
        """What :meth:`keep_statistics` kept, if it did."""
        file = self._private / f"{name}.safetensors"
        return safetensors.torch.load_file(str(file)) if file.is_file() else None

    def keep_statistics(self, name: str, values: dict[str, Tensor]) -> None:
        """Keep tensors for a run that continues this one."""
        partial = self._private / f"{name}.part"
        values = {key: value.contiguous() for key, value in values.items()}
        safetensors.torch.save_file(values, str(partial))
        os.replace(partial, self._private / f"{name}.safetensors")


def _difference(held: dict, state: dict) -> str:
    """The first entry in which two manifests differ."""
    for part in ("options", "inputs"):
        before, now = held.get(part, {}), state[part]
        for key in {**before, **now}:
            if before.get(key) != now.get(key):
                return f"{key}: {before.get(key)!r} there, {now.get(key)!r} here"
    return f"format {held.get('format')!r} there, {state['format']!r} here"
