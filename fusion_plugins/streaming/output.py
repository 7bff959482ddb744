"""The folder a merge is written to, and what a later run may keep of it."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import filelock
import safetensors.torch
import torch
from torch import Tensor

from .. import __version__
from ..common import get_logger
from ..common.identity import file_checksum
from ..common.options import settings_hash
from .shards import Shard, index_of

log = get_logger(__name__)

INDEX = "model.safetensors.index.json"
# What a model has beside its weights.
_CONFIGS = ("config.json", "generation_config.json", "adapter_config.json")
_BESIDE = (*_CONFIGS, "tokenizer*", "vocab*")
_FORMAT = 3  # of the manifest
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.index.json")
_PARTS = ("options", "inputs", "versions")  # of what a merge's numbers depend on


class OutputFolder:
    """Finished shards and statistics of one merge; nothing of another one.

    ``merge.json`` in the folder names the options, input files and versions that decide
    the numbers, and a hash of each file that is complete. What stands there is used again
    only if all are the same. Use it as a context: it keeps other runs out of the folder,
    and what they keep in ``.merge`` goes when the merge is complete.

    Args:
        path: The folder; made if it does not exist.
        options: Everything that determines the result, as plain JSON values.
        inputs: As from :func:`~fusion_plugins.streaming.inputs.identities`.
        overwrite: Delete the shards of another merge instead of refusing.

    Raises:
        ValueError: Another run writes there, or the folder holds other weights.
    """

    def __init__(
        self, path: Path, options: Mapping, inputs: Mapping, overwrite: bool = False
    ):
        self.path, self._overwrite = path, overwrite
        self._private = path / ".merge"
        self._manifest = path / "merge.json"
        versions = {"fusion_plugins": __version__, "torch": torch.__version__}
        described = {"format": _FORMAT, "options": dict(options)}
        described |= {"inputs": dict(inputs), "versions": versions}
        self._state = json.loads(json.dumps(described, sort_keys=True)) | {
            "fingerprint": settings_hash(described),
            "shards": {},  # file name -> hash
            "statistics": {},
            "companions": [],  # names of the files beside the weights
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
            self._leave()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        if (self.path / INDEX).is_file():  # complete
            shutil.rmtree(self._private, ignore_errors=True)
        self._guard.release()

    def _take_over(self) -> None:
        held = self._read_manifest()
        self._state["companions"] = held.get("companions", [])
        if held.get("fingerprint") == self._state["fingerprint"]:
            self._state["shards"] = _whole(self.path, held["shards"])
            self._state["statistics"] = _whole(
                self._private, held.get("statistics", {})
            )
            return
        weights = [f for pattern in _WEIGHTS for f in self.path.glob(pattern)]
        own = {*held["shards"], INDEX, *self._state["companions"]} if held else set()
        of_models = [f for pattern in _BESIDE for f in self.path.glob(pattern)]
        foreign = sorted({f.name for f in (*weights, *of_models)} - own)
        if foreign or (weights and not self._overwrite):
            raise ValueError(self._refusal(held, foreign))
        for file in weights:
            file.unlink()
        for file in self._private.iterdir():
            if file != Path(self._guard.lock_file):
                file.unlink()
        self._write_manifest()

    def _read_manifest(self) -> dict:
        if not self._manifest.is_file():
            return {}
        try:
            held = json.loads(self._manifest.read_text())
            dict(held["shards"])
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"{self._manifest} is damaged, so that nothing tells what {self.path}"
                " holds. Delete that folder, or choose another one with method.output."
            ) from error
        return held

    def _refusal(self, held: dict, foreign: list[str]) -> str:
        if foreign:
            return (
                f"{self.path} holds weights that are no part of a merge: {foreign[:5]}."
                " Choose an empty or new folder with method.output."
            )
        parts = [p for p in _PARTS if held.get(p) != self._state[p]]
        return (
            f"{self.path} holds a merge with other {' and '.join(parts) or 'versions'}"
            f" ({_difference(held, self._state)}). Choose another folder with"
            " method.output, or set method.overwrite=true to replace it."
        )

    def _write_manifest(self) -> None:
        self._write(self._manifest, json.dumps(self._state, indent=2).encode())

    def _write(self, target: Path, content: bytes) -> None:
        """Let a file appear whole or not at all."""
        partial = self._private / f"{target.name}.part"
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, target)

    def may_replace(self, name: str) -> bool:
        """Whether no file of someone else's has this name."""
        return name in self._state["companions"] or not (self.path / name).exists()

    def put_beside(self, contents: Mapping[str, bytes]) -> None:
        """Write the files beside the weights, in place of those of earlier runs."""
        for name in {*self._state["companions"]} - contents.keys():
            file = self.path / name
            if file.resolve().is_relative_to(self.path.resolve()):
                file.unlink(missing_ok=True)
        self._state["companions"] = list(contents)
        self._write_manifest()
        for name, content in contents.items():
            (self.path / name).parent.mkdir(exist_ok=True)
            self._write(self.path / name, content)

    # Shards

    def is_done(self, shard: Shard) -> bool:
        """Whether the shard stands there complete."""
        return shard.file in self._state["shards"]

    def partial(self, shard: Shard) -> Path:
        """Where a shard is written until it is complete."""
        return self._private / f"{shard.file}.part"

    def publish(self, shard: Shard) -> None:
        """Give a complete shard its name, and remember it."""
        self._publish("shards", self.partial(shard), self.path / shard.file)

    def _publish(self, kind: str, partial: Path, target: Path) -> None:
        digest = file_checksum(partial)
        with self._own:
            # First remembered: a file that is not known would count as someone else's.
            self._state[kind][target.name] = digest
            self._write_manifest()
            os.replace(partial, target)

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
        """Write the index, which makes the folder a model."""
        content = json.dumps(index_of(shards), indent=2).encode()
        self._write(self.path / INDEX, content)

    # Statistics of the task vectors, which cost a walk over all files each

    def kept(
        self, name: str, count: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What `count` returns, or has returned in the run that this one continues."""
        file = self._private / f"{name}.safetensors"
        if file.name in self._state["statistics"]:
            return safetensors.torch.load_file(str(file))
        values = {key: value.contiguous() for key, value in count().items()}
        partial = file.with_suffix(".part")
        safetensors.torch.save_file(values, str(partial))
        self._publish("statistics", partial, file)
        return values


def _whole(folder: Path, digests: Mapping[str, str]) -> dict[str, str]:
    """Those of the files that hold what was written; others are made again."""
    whole = {}
    for name, digest in digests.items():
        file = folder / name
        if file.is_file() and file_checksum(file) == digest:
            whole[name] = digest
        elif file.is_file():
            log.warning("%s has changed since it was written; it is made again.", file)
    return whole


def _difference(held: dict, state: dict) -> str:
    """The first entry in which two manifests differ."""
    for part in _PARTS:
        before, now = held.get(part, {}), state[part]
        for key in {**before, **now}:
            if before.get(key) != now.get(key):
                return f"{key}: {before.get(key)!r} there, {now.get(key)!r} here"
    return f"format {held.get('format')!r} there, {state['format']!r} here"
