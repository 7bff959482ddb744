"""The folder a merge is written to, and what a later run may keep of it."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import filelock
import safetensors.torch
import torch
from torch import Tensor

from .. import __version__
from ..common import get_logger
from ..common.identity import checksum, file_checksum
from ..common.options import settings_hash
from .manifest import PARTS, difference, read_manifest
from .shards import Shard, index_of

log = get_logger(__name__)

INDEX = "model.safetensors.index.json"
# What a model has beside its weights.
_CONFIGS = ("config.json", "generation_config.json", "adapter_config.json")
_BESIDE = (*_CONFIGS, "tokenizer*", "vocab*")
_FORMAT = 3  # of the manifest
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.index.json")


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
        beside: Names of the files that will stand beside the weights.

    Raises:
        ValueError: Another run writes there, or the folder holds other weights.
    """

    def __init__(
        self,
        path: Path,
        options: Mapping,
        inputs: Mapping,
        overwrite: bool = False,
        beside: Collection[str] = (),
    ):
        self.path, self._overwrite, self._beside = path, overwrite, beside
        self._private = path / ".merge"
        self._manifest = path / "merge.json"
        versions = {"fusion_plugins": __version__, "torch": torch.__version__}
        described = {"format": _FORMAT, "options": dict(options)}
        described |= {"inputs": dict(inputs), "versions": versions}
        self._state = json.loads(json.dumps(described, sort_keys=True)) | {
            "fingerprint": settings_hash(described),
            "shards": {},  # file name -> hash
            "statistics": {},
            "companions": {},  # file beside the weights -> hash; None in older manifests
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
        held = read_manifest(self._manifest)
        self._state["companions"] = held.get("companions", {})
        if held.get("fingerprint") == self._state["fingerprint"]:
            self._state["shards"] = _whole(self.path, held["shards"])
            self._state["statistics"] = _whole(self._private, held["statistics"])
            return
        weights = [f for pattern in _WEIGHTS for f in self.path.glob(pattern)]
        own = {*held["shards"], INDEX, *self._state["companions"]} if held else set()
        of_models = [f for p in (*_BESIDE, *self._beside) for f in self.path.glob(p)]
        found = {str(f.relative_to(self.path)) for f in (*weights, *of_models)}
        foreign = sorted(found - own)
        if foreign or (weights and not self._overwrite):
            raise ValueError(self._refusal(held, foreign))
        if self._overwrite:
            self._state["companions"] = dict.fromkeys(self._state["companions"])
        for file in weights:
            file.unlink()
        for file in self._private.iterdir():
            if file != Path(self._guard.lock_file):
                file.unlink()
        self._write_manifest()

    def _refusal(self, held: dict, foreign: list[str]) -> str:
        if foreign:
            return (
                f"{self.path} holds weights that are no part of a merge: {foreign[:5]}."
                " Choose an empty or new folder with method.output."
            )
        parts = [p for p in PARTS if held.get(p) != self._state[p]]
        return (
            f"{self.path} holds a merge with other {' and '.join(parts) or 'versions'}"
            f" ({difference(held, self._state)}). Choose another folder with"
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

    def put_beside(self, contents: Mapping[str, bytes]) -> None:
        """Write the files beside the weights, in place of those of earlier runs.

        What someone else has written or changed there stays.
        """
        held = self._state["companions"]
        theirs = {name for name in {**held, **contents} if self._is_theirs(name)}
        new = {n: checksum(c) for n, c in contents.items() if n not in theirs}
        for name in (n for n in {**held, **new} if n not in theirs):
            file = self.path / name
            if file.is_file() and file_checksum(file) != new.get(name):
                file.unlink()  # first, lest it counts as changed if this run ends here
        self._state["companions"] = {n: h for n, h in held.items() if n in theirs} | new
        self._write_manifest()
        for name in (n for n in new if not (self.path / n).exists()):
            (self.path / name).parent.mkdir(exist_ok=True)
            self._write(self.path / name, contents[name])

    def _is_theirs(self, name: str) -> bool:
        file, held = self.path / name, self._state["companions"]
        if not file.exists():
            return False
        ours = name in held and file.resolve().is_relative_to(self.path.resolve())
        if ours and file.is_file() and held[name] in (None, file_checksum(file)):
            return False
        log.warning("%s is not, or no longer, of this merge; it stays.", file)
        return True

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
